"""A new version of a pack that does not load gives way to the former one; one that loads lets it go."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from appliance.bundles import trial_numbers
from appliance.config import Settings
from appliance.control import pack_trials
from appliance.control.commands import Commands
from appliance.control.pack_trials import PackTrials, give_way, stay
from appliance.control.stores import open_stores
from appliance.jobs.runner import JobRunner
from appliance.packs.manifest import Manifest
from appliance.packs.store import PackStore
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.trust import TrustStore, Verified
from appliance.storage.errors import StorageError
from tests.packs.sample import contents, write_pack
from tests.releases.test_pulled_plug import in_child


class Served:
    """A catalog of one pack, whose new version loads or does not."""

    def __init__(self, packs: PackStore, *, loads: bool) -> None:
        self.packs = packs
        self.loads = loads
        self.model: Any = None
        self.take_in()

    def take_in(self) -> None:
        if not self.packs.list():
            self.model = None
            return
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
        return [] if self.model is None else [self.model]


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    """Return a store whose pack was replaced by version 2."""
    store = PackStore(tmp_path / "packs")
    store.install(write_pack(tmp_path / "one", contents(1)))
    store.install(write_pack(tmp_path / "two", contents(2), version='"2"'), keep_previous=True)
    assert store.previous() == ("sample",)
    return store


def trust_of(packs: PackStore) -> TrustStore:
    return TrustStore(packs.path.with_name("trust.json"), ())


def version(packs: PackStore) -> str:
    manifest = packs.verify("sample")
    return manifest.version


async def settled(packs: PackStore, served: Served) -> PackTrials:
    trials = PackTrials(packs, trust_of(packs), served, served.refresh)  # type: ignore[arg-type] # as much of a catalog as it asks for
    watching = asyncio.create_task(trials.watch())
    async with asyncio.timeout(30):
        left = await trials.outcome("sample", "2")
    assert (left and left.reason) == trials.failures.get(("sample", "2"))
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


@pytest.mark.parametrize("content", [b"", b'{"manifest_sha256":"\xff"}', b'{"x":' + b"[" * 100_000])
async def test_a_damaged_note_of_numbers_keeps_nobody_from_deciding(packs: PackStore, content: bytes) -> None:
    (packs.path / ".number-sample").write_bytes(content)
    assert trial_numbers.undecided(packs) == ("sample",)
    assert not trial_numbers.is_first(packs, "sample")
    await settled(packs, Served(packs, loads=False))
    assert version(packs) == "1"


async def test_the_former_version_is_said_to_serve_again_once_it_does(
    packs: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_trials, "LOOK_EVERY_SECONDS", 0.01)
    served = Served(packs, loads=False)

    async def refresh() -> None:
        if served.model.state == "failed":
            await served.refresh()
            served.model.state = "loading"

    trials = PackTrials(packs, trust_of(packs), served, refresh)  # type: ignore[arg-type]
    watching = asyncio.create_task(trials.watch())
    outcome = asyncio.create_task(trials.outcome("sample", "2"))
    async with asyncio.timeout(30):
        while served.model.state != "loading":  # noqa: ASYNC110 - the catalog tells no one
            await asyncio.sleep(0.01)
        assert await asyncio.wait({outcome}, timeout=0.2) == (set(), {outcome})
        served.model.state = "ready"
        left = await outcome
    assert left is not None
    assert left.former_returned
    watching.cancel()


async def test_nothing_is_decided_while_it_loads(packs: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_trials, "LOOK_EVERY_SECONDS", 0.01)
    served = Served(packs, loads=True)
    served.model.state = "loading"
    watching = asyncio.create_task(PackTrials(packs, trust_of(packs), served, served.refresh).watch())  # type: ignore[arg-type]
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


def signed_trial(packs: PackStore, tmp_path: Path) -> tuple[TrustStore, str, Manifest]:
    """Put version 2 on trial anew, signed as number 2; 1 was number 1. Returns its signer's id and its manifest too."""
    key = SecretKey.generate()
    (tmp_path / "keys").mkdir(mode=0o755)
    write_public_key(tmp_path / "keys" / "vendor.pub", key.public)
    signed = Verified(name="sample", sequence=1, kind="pack", key_id=key.public.id, digest=b"", size=0)
    packs.put_back_previous("sample")
    accepting = TrustStore(packs.path.with_name("trust.json"), (tmp_path / "keys",))
    accepting.accept(signed)

    def accept(manifest: Manifest) -> bool:
        trial_numbers.accept(packs, accepting, manifest, msgspec.structs.replace(signed, sequence=2))
        return True

    source = write_pack(tmp_path / "tried", contents(2), version='"2"')
    tried = packs.install(source, accept=accept, keep_previous=True)
    return accepting, key.public.id, tried


@pytest.mark.parametrize("then", [give_way, stay])
def test_killed_at_any_step_of_giving_way_number_and_version_are_of_one_mind(
    packs: PackStore, tmp_path: Path, then: Callable[[PackStore, TrustStore, str, Manifest | None], None]
) -> None:
    _, key, tried = signed_trial(packs, tmp_path)
    killed, step, seen = True, 0, set()
    while killed:
        folder = tmp_path / f"box-{step}"
        shutil.copytree(packs.path, folder / "packs")
        shutil.copyfile(packs.path.with_name("trust.json"), folder / "trust.json")
        mine, trust = PackStore(folder / "packs"), TrustStore(folder / "trust.json", (tmp_path / "keys",))
        killed, _ = in_child(partial(give_way, mine, trust, "sample", tried), step)
        # The next start tries what is there, unless that is decided; the version before loads.
        mine.sweep()
        if "sample" in mine.previous():
            (then if version(mine) == "2" else stay)(mine, trust, "sample", mine.get("sample").manifest)
        number = trust.accepted("pack", "sample")[key]
        assert version(mine) == str(number)
        seen.add(number)
        step += 1
    assert step > 5
    assert 1 in seen


def test_a_number_that_cannot_be_withdrawn_keeps_no_pack_from_giving_way(
    packs: PackStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accepting, key, tried = signed_trial(packs, tmp_path)
    give_way(packs, TrustStore(tmp_path / "no" / "folder" / "trust.json", ()), "sample", tried)
    assert (version(packs), packs.previous()) == ("1", ())
    assert accepting.accepted("pack", "sample") == {key: 2}
    assert "number of sample stays" in caplog.text


async def test_a_version_on_trial_whose_files_are_damaged_gives_way(packs: PackStore) -> None:
    served = Served(packs, loads=True)
    (packs.path / "sample" / "model.onnx").write_bytes(b"short")
    trials = PackTrials(packs, trust_of(packs), served, served.refresh)  # type: ignore[arg-type]
    watching = asyncio.create_task(trials.watch())
    async with asyncio.timeout(30):
        await trials.outcome("sample", "2")
    watching.cancel()
    assert version(packs) == "1"


async def test_a_version_that_the_catalog_has_not_taken_in_is_taken_in(packs: PackStore) -> None:
    served = Served(packs, loads=True)
    # As a change that was cut off before it told the catalog leaves it.
    served.model.manifest = msgspec.structs.replace(served.model.manifest, version="1")
    await settled(packs, served)
    assert (version(packs), served.model.manifest.version) == ("2", "2")


@pytest.mark.parametrize("command", ["pack.rollback", "pack.remove"])
async def test_what_cannot_be_recorded_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    with open_stores(Settings(data_dir=tmp_path / "data")) as stores:
        packs = stores.packs
        packs.install(write_pack(tmp_path / "one", contents(1)))
        packs.install(write_pack(tmp_path / "two", contents(2), version='"2"'), keep_previous=True)
        packs.settle_previous("sample")

        def full(*_: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr(stores.audit, "append", full)
        commands = Commands(stores, JobRunner(stores.database, {}))
        with pytest.raises(StorageError):
            await commands.run(command, {"name": "sample"}, lambda _done, _total: None)
        assert (version(packs), packs.previous()) == ("2", ())
        former = packs.former("sample")
        assert former is not None
        assert former.version == "1"
