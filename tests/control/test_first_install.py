"""A pack that is installed for the first time and does not load: its number is free again until it has loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from appliance.bundles.installation import install_pack
from appliance.control import pack_trials
from appliance.control.pack_trials import PackTrials, leave_deadly
from appliance.packs import attempts
from appliance.packs.errors import PackError
from appliance.packs.store import PackStore
from appliance.signing.errors import SigningError
from tests.packs.test_signatures import KEY, bundle
from tests.signing.samples import Box


class Served:
    """A catalog of the pack ``sample``, which loads or does not each time that it is taken in."""

    def __init__(self, packs: PackStore, *, loads: bool, reason: str) -> None:
        self.packs = packs
        self.reason = reason
        self.loads = loads
        self.model: Any = None

    async def refresh(self) -> None:
        manifest = self.packs.get("sample").manifest
        if manifest is None:
            self.model = None
            return
        state, error = ("ready", None) if self.loads else ("failed", self.reason)
        self.model = SimpleNamespace(manifest=manifest, state=state, error=error)

    def models(self) -> list[Any]:
        return [] if self.model is None else [self.model]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box", KEY)


@pytest.fixture
def packs(box: Box) -> PackStore:
    return PackStore(box.data_dir / "packs")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_trials, "LOOK_EVERY_SECONDS", 0.01)
    # The sample's task: as if there were an engine for it.
    monkeypatch.setattr(pack_trials, "SERVED_TASKS", frozenset({"layout"}))


@asynccontextmanager
async def service(
    box: Box, packs: PackStore, *, loads: bool, reason: str = "not enough memory"
) -> AsyncIterator[PackTrials]:
    """Look after the packs of a box as a service does from its start to its end."""
    served = Served(packs, loads=loads, reason=reason)
    if packs.list():
        await served.refresh()
    trials = PackTrials(packs, box.store(), served, served.refresh)  # type: ignore[arg-type] # as much of a catalog as it asks for
    watching = asyncio.create_task(trials.watch())
    try:
        async with asyncio.timeout(30):
            yield trials
    finally:
        watching.cancel()


def accepted(box: Box) -> dict[str, int]:
    return box.store().accepted("pack", "sample")


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - files tell no one
        await asyncio.sleep(0.01)


async def test_the_same_archive_and_an_older_one_that_works_may_be_tried_after_it(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    newer, older = bundle(tmp_path, 5), bundle(tmp_path, 3)
    async with service(box, packs, loads=False) as trials:
        for _ in range(2):
            install_pack(packs, box.store(), newer)
            left = await trials.outcome("sample", "1")
            assert left is not None
            assert (left.reason, left.former_returned) == ("not enough memory", False)
        await until(lambda: accepted(box) == {})
    async with service(box, packs, loads=True) as trials:
        install_pack(packs, box.store(), older)
        assert await trials.outcome("sample", "1") is None
    assert accepted(box) == {KEY.public.id: 3}


async def test_one_without_a_signature_says_so_too(tmp_path: Path, box: Box, packs: PackStore) -> None:
    async with service(box, packs, loads=False) as trials:
        for _ in range(2):
            install_pack(packs, box.store(), bundle(tmp_path, 5, key=None), allow_unsigned=True)
            left = await trials.outcome("sample", "1")
            assert left is not None
            assert (left.reason, left.former_returned) == ("not enough memory", False)
    assert [pack.name for pack in packs.list()] == ["sample"]


async def test_what_never_loaded_is_no_way_back_for_what_replaces_it(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    async with service(box, packs, loads=False) as trials:
        for number in (5, 3, 6):
            install_pack(packs, box.store(), bundle(tmp_path, number))
            left = await trials.outcome("sample", "1")
            assert left is not None
            assert (left.former_returned, packs.previous()) == (False, ())
            await until(lambda: accepted(box) == {})
        assert (packs.path / "sample" / "labels.txt").read_bytes() == b"6"


async def test_the_same_version_once_more_is_on_no_trial(tmp_path: Path, box: Box, packs: PackStore) -> None:
    path = bundle(tmp_path, 5)
    async with service(box, packs, loads=True) as trials:
        install_pack(packs, box.store(), path)
        assert await trials.outcome("sample", "1") is None
    install_pack(packs, box.store(), path)
    for _ in range(4):
        leave_deadly(packs, box.store())
    install_pack(packs, box.store(), bundle(tmp_path, 6))
    assert packs.previous() == ("sample",)
    assert accepted(box) == {KEY.public.id: 6}


async def test_its_number_counts_once_it_loads_after_all(tmp_path: Path, box: Box, packs: PackStore) -> None:
    newer, older = bundle(tmp_path, 5), bundle(tmp_path, 3)
    async with service(box, packs, loads=False) as trials:
        install_pack(packs, box.store(), newer)
        assert await trials.outcome("sample", "1") is not None
        await until(lambda: accepted(box) == {})
    async with service(box, packs, loads=True) as trials:
        assert await trials.outcome("sample", "1") is None
    assert accepted(box) == {KEY.public.id: 5}
    # It has served: no later failure makes room for an older one.
    async with service(box, packs, loads=False) as trials:
        assert await trials.outcome("sample", "1") is not None
    with pytest.raises(SigningError, match="older than number 5"):
        install_pack(packs, box.store(), older)


async def test_what_was_accepted_before_a_damaged_pack_was_replaced_still_counts(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    async with service(box, packs, loads=True) as trials:
        install_pack(packs, box.store(), bundle(tmp_path, 4))
        assert await trials.outcome("sample", "1") is None
    (packs.path / "sample" / "model.onnx").unlink()
    async with service(box, packs, loads=False) as trials:
        install_pack(packs, box.store(), bundle(tmp_path, 5))
        assert await trials.outcome("sample", "1") is not None
        await until(lambda: accepted(box) == {KEY.public.id: 4})
    with pytest.raises(SigningError, match="older than number 4"):
        install_pack(packs, box.store(), bundle(tmp_path, 3))


def starts_with(packs: PackStore, box: Box) -> set[str]:
    """Return the packs that a start loads, which is ended by a kill."""
    left_out = leave_deadly(packs, box.store())
    return {pack.name for pack in packs.list()} - left_out.keys()


async def test_one_that_ends_the_service_at_each_start_is_left_out_of_the_third(
    tmp_path: Path, box: Box, packs: PackStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = bundle(tmp_path, 5)
    for _ in range(2):  # it may be tried again, as often
        install_pack(packs, box.store(), path)
        assert [starts_with(packs, box) for _ in range(4)] == [{"sample"}, {"sample"}, set(), set()]
        assert "sample is left out" in caplog.text
    attempts.clear(packs.path)  # as a stop in good order does
    assert starts_with(packs, box) == {"sample"}


async def test_one_that_is_left_out_says_so_and_frees_its_number(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    install_pack(packs, box.store(), bundle(tmp_path, 5))
    for _ in range(2):
        leave_deadly(packs, box.store())
    reason = leave_deadly(packs, box.store())["sample"]
    async with service(box, packs, loads=False, reason=reason) as trials:
        left = await trials.outcome("sample", "1")
        assert left is not None
        assert left.reason == reason
        await until(lambda: accepted(box) == {})
    assert starts_with(packs, box) == set()


async def test_of_several_the_largest_is_left_out_first(tmp_path: Path, box: Box, packs: PackStore) -> None:
    for name, size in (("small", 1), ("large", 3), ("middle", 2)):
        install_pack(packs, box.store(), bundle(tmp_path, size, name=name, memory_bytes=str(size)))
    everything, rest = {"small", "middle", "large"}, {"small", "middle"}
    loaded = [starts_with(packs, box) for _ in range(8)]
    assert loaded == [everything, everything, rest, rest, {"small"}, {"small"}, set(), set()]


async def test_one_that_only_fails_is_not_counted_as_deadly(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    install_pack(packs, box.store(), bundle(tmp_path, 5))
    for _ in range(4):  # each ended by a power cut while it serves its other models
        leave_deadly(packs, box.store())
        async with service(box, packs, loads=False) as trials:
            assert await trials.outcome("sample", "1") is not None
            await until(lambda: not list(packs.path.glob(".attempts-*")))
    assert [pack.name for pack in packs.list()] == ["sample"]


async def test_a_number_of_what_never_took_its_place_is_left_alone(
    tmp_path: Path, box: Box, packs: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the note and the rename: the older version serves, the newer archive is taken again."""
    install_pack(packs, box.store(), bundle(tmp_path, 3))
    (packs.path / "sample" / "model.onnx").unlink()  # so that no former version is kept

    def cut(*_: object) -> None:
        raise OSError("cut off")

    newer = bundle(tmp_path, 5)
    with monkeypatch.context() as patched:
        patched.setattr("appliance.packs.store.replace", cut)
        with pytest.raises(PackError, match="install sample"):
            install_pack(packs, box.store(), newer)
    async with service(box, packs, loads=False):
        await asyncio.sleep(0.1)
    assert accepted(box) == {KEY.public.id: 5}
    install_pack(packs, box.store(), bundle(tmp_path, 5))


async def test_a_note_that_an_earlier_release_left_puts_what_served_on_no_trial(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    """It noted the numbers of first installations too, and never took the notes away."""
    async with service(box, packs, loads=True) as trials:
        install_pack(packs, box.store(), bundle(tmp_path, 5))
        noted = (packs.path / ".number-sample").read_bytes()
        assert await trials.outcome("sample", "1") is None
    left = msgspec.json.decode(noted)
    left.pop("awaited", None)
    (packs.path / ".number-sample").write_bytes(msgspec.json.encode(left))
    for _ in range(3):  # each ended by a kill
        leave_deadly(packs, box.store())
        assert [pack.name for pack in packs.list()] == ["sample"]
    async with service(box, packs, loads=False):
        await asyncio.sleep(0.1)
    assert accepted(box) == {KEY.public.id: 5}


async def test_a_damaged_note_is_told_of_once(
    tmp_path: Path, box: Box, packs: PackStore, caplog: pytest.LogCaptureFixture
) -> None:
    install_pack(packs, box.store(), bundle(tmp_path, 5))
    (packs.path / ".number-sample").write_bytes(b"")
    leave_deadly(packs, box.store())
    caplog.clear()
    async with service(box, packs, loads=True):
        await asyncio.sleep(0.1)
    assert "cannot be read" not in caplog.text
    assert accepted(box) == {KEY.public.id: 5}
