"""The version before: kept once the new one works, gone back to in one step, never the reason for a full disk."""

from __future__ import annotations

import errno
import shutil
from functools import partial
from pathlib import Path

import pytest

from appliance import disk
from appliance.packs import store as store_module
from appliance.packs.errors import PackError, PackSpaceError
from appliance.packs.store import RESERVE_BYTES, PackStore
from tests.packs.sample import contents, write_pack
from tests.releases.test_pulled_plug import in_child


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    """Return a store whose pack is version 2, which has shown that it works; version 1 is the one before."""
    store = PackStore(tmp_path / "packs")
    store.install(write_pack(tmp_path / "one", contents(1)))
    store.install(write_pack(tmp_path / "two", contents(2), version='"2"'), keep_previous=True)
    store.settle_previous("sample")
    return store


def version(packs: PackStore) -> str:
    return packs.verify("sample").version


def former(packs: PackStore) -> str | None:
    manifest = packs.former("sample")
    return None if manifest is None else manifest.version


def test_the_version_before_takes_the_place_and_is_on_trial(packs: PackStore) -> None:
    assert (version(packs), former(packs)) == ("2", "1")
    assert packs.go_back("sample").version == "1"
    assert (version(packs), former(packs), packs.previous()) == ("1", None, ("sample",))
    with pytest.raises(PackError, match="being tried"):
        packs.go_back("sample")
    packs.settle_previous("sample")
    assert (version(packs), former(packs), packs.previous()) == ("1", "2", ())


def test_a_version_before_that_does_not_load_gives_way_again(packs: PackStore) -> None:
    packs.go_back("sample")
    packs.put_back_previous("sample")
    assert (version(packs), former(packs)) == ("2", None)
    with pytest.raises(PackError, match="no former version"):
        packs.go_back("sample")


def test_one_version_before_is_kept(packs: PackStore, tmp_path: Path) -> None:
    packs.install(write_pack(tmp_path / "three", contents(3), version='"3"'), keep_previous=True)
    assert former(packs) == "1"  # the third may not load
    packs.settle_previous("sample")
    assert (version(packs), former(packs)) == ("3", "2")
    packs.remove("sample")
    assert former(packs) is None


def test_a_change_that_was_cut_off_before_it_began_costs_no_way_back(packs: PackStore) -> None:
    shutil.copytree(packs.path / "sample", packs.path / ".previous-sample")
    packs.settle_previous("sample")
    assert (version(packs), former(packs), packs.previous()) == ("2", "1", ())


def test_the_version_before_makes_room_for_a_new_one(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = write_pack(tmp_path / "three", contents(3), version='"3"')

    def free(_: Path) -> int:
        return RESERVE_BYTES + (4096 if former(packs) else 1 << 20)

    monkeypatch.setattr(store_module, "free_bytes", free)
    packs.install(three, keep_previous=True)
    assert (version(packs), former(packs), packs.previous()) == ("3", None, ("sample",))
    packs.settle_previous("sample")
    monkeypatch.setattr(store_module, "free_bytes", lambda _: 0)
    with pytest.raises(PackSpaceError):
        packs.install(write_pack(tmp_path / "four", contents(4), version='"4"'), keep_previous=True)
    # Where that would not be room enough, it is not given up for nothing.
    assert (version(packs), former(packs)) == ("3", "2")


@pytest.mark.parametrize("swappable", [True, False], ids=["swapped", "renamed"])
def test_killed_at_any_step_of_giving_way_one_of_the_two_is_there(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swappable: bool
) -> None:
    if not swappable:
        monkeypatch.setattr(disk, "exchange", refuse)
    packs.install(write_pack(tmp_path / "three", contents(3), version='"3"'), keep_previous=True)
    killed, step = True, 0
    while killed:
        mine = PackStore(tmp_path / f"packs-{step}")
        shutil.copytree(packs.path, mine.path)
        killed, _ = in_child(partial(mine.put_back_previous, "sample"), step)
        mine.sweep()
        assert version(mine) in ("2", "3")
        # What gave way does so again, unless it is done: it never passes for the version before.
        mine.put_back_previous("sample")
        mine.settle_previous("sample")
        assert (version(mine), former(mine), mine.previous()) == ("2", "1", ())
        step += 1
    assert version(mine) == "2"
    assert step > 3


def refuse(*_: Path) -> None:
    """Swap nothing, as some file systems do."""
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("change", ["go_back", "settle_previous"])
def test_killed_at_any_step_there_are_still_two_versions(
    packs: PackStore, tmp_path: Path, change: str
) -> None:
    if change == "settle_previous":
        packs.install(write_pack(tmp_path / "three", contents(3), version='"3"'), keep_previous=True)
    before = version(packs)
    killed, step, seen = True, 0, set()
    while killed:
        mine = PackStore(tmp_path / f"packs-{step}")
        shutil.copytree(packs.path, mine.path)
        killed, _ = in_child(partial(getattr(mine, change), "sample"), step)
        # As the next start does.
        mine.sweep()
        mine.settle_previous("sample")
        assert version(mine) in (before, "1")
        assert former(mine) not in (None, version(mine))
        seen.add(version(mine))
        step += 1
    assert step > 5
    assert seen == ({before, "1"} if change == "go_back" else {before})
