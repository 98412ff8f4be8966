"""A new version of a pack that does not load gives way to the former one; one that loads lets it go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.control import pack_trials
from appliance.control.pack_trials import PackTrials
from appliance.packs.store import PackStore
from tests.packs.sample import contents, write_pack


class Served:
    """A catalog of one pack, whose new version loads or does not."""

    def __init__(self, packs: PackStore, *, loads: bool) -> None:
        self.packs = packs
        self.loads = loads
        self.model: Any = None
        self.take_in()

    def take_in(self) -> None:
        manifest = self.packs.get("sample").manifest
        assert manifest is not None
        works = manifest.version == "1" or self.loads
        self.model = SimpleNamespace(
            manifest=manifest,
            state="ready" if works else "failed",
            error=None if works else "no such operator",
        )

    async def refresh(self) -> None:
        self.take_in()

    def models(self) -> list[Any]:
        return [self.model]


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    """Return a store whose pack was replaced by version 2."""
    store = PackStore(tmp_path / "packs")
    store.install(write_pack(tmp_path / "one", contents(1)))
    store.install(write_pack(tmp_path / "two", contents(2), version='"2"'), keep_previous=True)
    assert store.previous() == ("sample",)
    return store


def version(packs: PackStore) -> str:
    manifest = packs.verify("sample")
    return manifest.version


async def settled(packs: PackStore, served: Served) -> PackTrials:
    trials = PackTrials(packs, served, served.refresh)  # type: ignore[arg-type] # as much of a catalog as it asks for
    watching = asyncio.create_task(trials.watch())
    async with asyncio.timeout(30):
        reason = await trials.outcome("sample", "2")
    assert reason == trials.failures.get(("sample", "2"))
    watching.cancel()
    return trials


async def test_a_version_that_loads_stays(packs: PackStore) -> None:
    trials = await settled(packs, Served(packs, loads=True))
    assert version(packs) == "2"
    assert trials.failures == {}


async def test_a_version_that_does_not_load_gives_way_to_the_former_one(packs: PackStore) -> None:
    served = Served(packs, loads=False)
    trials = await settled(packs, served)
    assert version(packs) == "1"
    assert trials.failures == {("sample", "2"): "no such operator"}
    assert served.model.state == "ready"


async def test_nothing_is_decided_while_it_loads(packs: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_trials, "LOOK_EVERY_SECONDS", 0.01)
    served = Served(packs, loads=True)
    served.model.state = "loading"
    watching = asyncio.create_task(PackTrials(packs, served, served.refresh).watch())  # type: ignore[arg-type]
    await asyncio.sleep(0.2)
    watching.cancel()
    assert packs.previous() == ("sample",)


async def test_what_is_removed_has_no_former_version(packs: PackStore) -> None:
    served = Served(packs, loads=True)
    packs.remove("sample")
    assert packs.previous() == ()
    await settled(packs, served)


def test_a_sweep_leaves_the_former_version(packs: PackStore) -> None:
    packs.sweep()
    assert packs.previous() == ("sample",)
    assert [pack.name for pack in packs.list()] == ["sample"]


def test_the_version_that_worked_stays_the_one_to_go_back_to(packs: PackStore, tmp_path: Path) -> None:
    packs.install(write_pack(tmp_path / "three", contents(3), version='"3"'), keep_previous=True)
    packs.put_back_previous("sample")
    assert version(packs) == "1"
