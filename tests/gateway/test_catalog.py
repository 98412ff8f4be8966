"""Which packs the catalog loads, and when it tries one again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError
from appliance.gateway import catalog as catalog_module
from appliance.gateway.catalog import Catalog
from appliance.packs.store import PackStore
from tests.packs.sample import contents, write_pack


class Engines:
    """Stands for the engines of every pack: opening one fails until there is room."""

    def __init__(self) -> None:
        self.room = False
        self.opened = 0

    async def open(self, *_: Any) -> Any:
        self.opened += 1
        if not self.room:
            raise EngineError("not enough memory")
        return object()

    async def close(self, _engine: Any) -> None:
        pass


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(catalog_module, "SERVED_TASKS", frozenset({"layout"}))
    monkeypatch.setattr(catalog_module, "open_engine", made.open)
    monkeypatch.setattr(catalog_module, "close_engine", made.close)
    return made


@pytest.fixture
async def catalog(tmp_path: Path, engines: Engines) -> AsyncIterator[Catalog]:
    made = Catalog(PackStore(tmp_path / "packs"), Cores(1), Settings(data_dir=tmp_path))
    yield made
    await made.close()


async def state(catalog: Catalog) -> str:
    """Take in what is installed, wait for what is loading, and return how the one pack does."""
    await catalog.refresh()
    (model,) = catalog.models()
    assert model.loading is not None
    await model.loading
    return model.state


async def test_a_pack_that_failed_is_loaded_again_when_it_is_installed_again(
    tmp_path: Path, catalog: Catalog, engines: Engines
) -> None:
    packs, source = PackStore(tmp_path / "packs"), write_pack(tmp_path / "source", contents(1))
    packs.install(source)
    assert await state(catalog) == "failed"
    engines.room = True
    # Not at every look: what failed may take long to fail again.
    assert (await state(catalog), engines.opened) == ("failed", 1)
    packs.install(source)
    assert (await state(catalog), engines.opened) == ("ready", 2)
    # What serves is left alone.
    packs.install(source)
    assert (await state(catalog), engines.opened) == ("ready", 2)


async def test_a_pack_that_is_left_out_is_loaded_when_it_is_installed_again(
    tmp_path: Path, catalog: Catalog, engines: Engines
) -> None:
    packs, source = PackStore(tmp_path / "packs"), write_pack(tmp_path / "source", contents(1))
    packs.install(source)
    engines.room = True
    catalog.leave_out({"sample": "it ended the service"})
    for _ in range(2):
        await catalog.refresh()
        (model,) = catalog.models()
        assert (model.state, model.error, engines.opened) == ("failed", "it ended the service", 0)
    packs.install(source)
    assert (await state(catalog), engines.opened) == ("ready", 1)
