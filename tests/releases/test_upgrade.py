"""Upgrades that go well, that are refused, and that come back; and the way back by command."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from appliance.cli.upgrade import install_first, upgrade
from appliance.control.client import run_command
from appliance.control.errors import ControlError
from appliance.errors import ApplianceError
from appliance.releases import snapshot, switching
from appliance.releases.errors import ClosedForWritesError, ReleaseError
from appliance.releases.journal import Journal, Phase, driving, read_journal, write_journal
from appliance.releases.switching import resume, switch
from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey
from tests.releases.box import (
    CHANGED,
    CONFIGURATION,
    FakeBox,
    Maker,
    configuration_of,
    packs_of,
    write_cut_off,
)


def outcome(box: FakeBox) -> Journal:
    journal = read_journal(box.layout.journal_path)
    assert journal is not None
    return journal


def leftovers(box: FakeBox) -> list[str]:
    hidden = [path.name for path in box.settings.data_dir.iterdir() if path.name.startswith(".upgrade")]
    return hidden + [path.name for path in box.layout.releases.iterdir() if path.name.startswith(".")]


def test_the_new_release_serves_with_the_data_of_the_old_one(box: FakeBox, maker: Maker) -> None:
    box.upgrade(maker.bundle(2, schema=2))
    assert box.layout.current().sequence == 2
    assert box.service.release is not None
    assert box.service.release.sequence == 2
    assert "first" in box.service.rows()
    box.service.write("second")
    assert outcome(box).well
    assert box.layout.keeper_link.readlink() == box.layout.current_link.readlink()
    assert leftovers(box) == []


def test_two_releases_are_kept(box: FakeBox, maker: Maker) -> None:
    for sequence in (2, 3, 4):
        box.upgrade(maker.bundle(sequence))
    assert [release.sequence for release in box.layout.all()] == [3, 4]


def test_writes_are_refused_and_reads_answered_until_the_release_has_shown_that_it_works(
    box: FakeBox, maker: Maker
) -> None:
    tried: list[str] = []
    real = box.service.ask

    def ask() -> object:
        state = real()
        if state.closed:
            assert "first" in box.service.rows()
            with pytest.raises(ClosedForWritesError):
                box.service.write("on trial")
            tried.append(state.version)
        return state

    box.box = msgspec.structs.replace(box.box, ask=ask)
    box.service.box = box.box
    box.upgrade(maker.bundle(2))
    assert tried == ["0.2"]


@pytest.mark.parametrize(
    "behaviour", [{"crashes": True}, {"broken": ["chat"]}], ids=["does-not-start", "loses-a-model"]
)
def test_a_release_that_does_not_work_leaves_the_old_one_and_the_old_store(
    box: FakeBox, maker: Maker, behaviour: dict[str, object]
) -> None:
    before = box.service.rows()
    with pytest.raises(ReleaseError, match="runs again; nothing was lost"):
        box.upgrade(maker.bundle(2, schema=3, **behaviour))  # type: ignore[arg-type]
    assert box.layout.current().sequence == 1
    assert box.service.running()
    # Not a row of the trial is left, and the schema is the old one (release 1 could not open number 3).
    assert {row for row in box.service.rows() if "0.2" in row} == set()
    assert before <= box.service.rows()
    box.service.write("goes on")
    assert [release.sequence for release in box.layout.all()] == [1]
    assert leftovers(box) == []


PACKS = {"stays": "stays", "goes": "goes", ".former-stays": ".former-stays"}


def test_the_way_back_brings_configuration_and_packs_too(box: FakeBox, maker: Maker) -> None:
    configuration = configuration_of(box.settings)
    with pytest.raises(ReleaseError, match="runs again; nothing was lost"):
        box.upgrade(maker.bundle(2, schema=2, meddles=True, crashes=True))
    assert packs_of(box.settings) == PACKS
    assert configuration.read_text() == CONFIGURATION
    assert configuration.stat().st_mode & 0o777 == 0o640
    # Whoever wrote the other one finds it again, and is told.
    aside = configuration.with_name("appliance.toml.of-2-0.2")
    assert aside.read_text() == CHANGED
    assert [line for line in box.said if str(aside) in line]
    assert [line for line in box.said if "comes, goes, stays" in line]
    assert leftovers(box) == []
    assert not (box.layout.root / "configuration-before").exists()


def test_what_was_changed_by_a_release_that_took_writes_stays(box: FakeBox, maker: Maker) -> None:
    with pytest.raises(ReleaseError, match="all that was written since"):
        box.upgrade(maker.bundle(2, schema=2, meddles=True, dies_when_open=True))
    assert packs_of(box.settings) == {"stays": "other", "comes": "new"}
    assert configuration_of(box.settings).read_text() == CHANGED
    assert not (box.layout.root / "configuration-before").exists()


def test_an_upgrade_that_goes_well_leaves_configuration_and_packs_alone(box: FakeBox, maker: Maker) -> None:
    before = (box.settings.packs_dir / "stays" / "pack.toml").stat()
    box.upgrade(maker.bundle(2))
    assert packs_of(box.settings) == PACKS
    assert (box.settings.packs_dir / "stays" / "pack.toml").stat().st_ino == before.st_ino
    assert configuration_of(box.settings).read_text() == CONFIGURATION
    assert not (box.layout.root / "configuration-before").exists()


def test_a_configuration_that_cannot_be_put_back_keeps_no_box_from_coming_back(
    box: FakeBox, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    configuration = configuration_of(box.settings)
    real = box.service.start

    def start() -> None:
        # A folder in the way: also root cannot write a file there.
        try:
            real()
        finally:
            if not box.service.running() and configuration.is_file():
                configuration.unlink()
                configuration.mkdir()

    box.service.start = start  # type: ignore[method-assign]
    with pytest.raises(ReleaseError, match="nothing was lost"):
        box.upgrade(maker.bundle(2, crashes=True))
    assert box.layout.current().sequence == 1
    assert box.service.running()
    kept = box.layout.root / "configuration-before"
    assert kept.read_text() == CONFIGURATION
    assert str(kept) in caplog.text


@pytest.mark.parametrize("phase", ["begun", "switching", "trial"])
def test_where_the_way_back_cannot_be_gone_to_its_end_the_next_start_goes_it(
    box: FakeBox, maker: Maker, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    before, real = box.service.rows(), write_journal
    full = False

    def write(path: Path, journal: Journal) -> None:
        nonlocal full
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, journal)
        full = journal.phase == phase

    monkeypatch.setattr(switching, "write_journal", write)
    with pytest.raises((ReleaseError, OSError), match="No space left"):
        box.upgrade(maker.bundle(2, schema=3, crashes=True))
    assert not box.service.running()
    assert box.service.wanted
    full, phase = False, "done"
    box.service.start()
    assert box.layout.current().sequence == 1
    assert before <= box.service.rows()


def test_a_switch_that_cannot_be_taken_back_leaves_no_box_stopped(box: FakeBox, maker: Maker) -> None:
    write_cut_off(box.layout, box.settings.data_dir, "returning", ".upgrade-before-gone")
    with pytest.raises(ReleaseError, match="is gone: restore a backup"):
        box.upgrade(maker.bundle(2))
    assert box.service.wanted


def test_where_the_release_of_before_cannot_be_started_at_once_it_is_started_later(
    box: FakeBox, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = box.service.start

    def start() -> None:
        if box.layout.current().sequence == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "appliance.service")  # where units lie
        real()

    monkeypatch.setattr(box.service, "start", start)
    with pytest.raises(OSError, match="No space left"):
        box.upgrade(maker.bundle(2, crashes=True))
    assert box.layout.current().sequence == 1
    assert box.service.wanted


def test_a_release_that_dies_after_it_took_writes_leaves_them(box: FakeBox, maker: Maker) -> None:
    with pytest.raises(ReleaseError, match="all that was written since"):
        box.upgrade(maker.bundle(2, schema=2, dies_when_open=True))
    assert box.layout.current().sequence == 1
    # The store stays migrated: what was written meanwhile is in it.
    assert "start 2-0.2 2" in box.service.rows()
    assert snapshot.oldest_reader_of(box.settings.data_dir) == 1


def test_a_release_whose_store_no_other_opens_stays_once_it_took_writes(box: FakeBox, maker: Maker) -> None:
    with pytest.raises(ReleaseError, match="stays with"):
        box.upgrade(maker.bundle(2, schema=3, dies_when_open=True))
    assert box.layout.current().sequence == 2
    box.service.start()


def test_a_failed_smoke_test_changes_nothing(box: FakeBox, maker: Maker) -> None:
    starts = box.service.starts
    with pytest.raises(ReleaseError, match="failed its smoke test"):
        box.upgrade(maker.bundle(2, verdict=1))
    assert box.service.starts == starts
    assert [release.sequence for release in box.layout.all()] == [1]
    assert leftovers(box) == []


def test_a_release_that_does_not_stop_the_service_in_time_changes_nothing(box: FakeBox, maker: Maker) -> None:
    def stop() -> None:
        raise ReleaseError("systemctl stop appliance.service failed: timed out")

    box.service.stop = stop  # type: ignore[method-assign]
    with pytest.raises(ReleaseError, match="timed out"):
        box.upgrade(maker.bundle(2))
    assert box.layout.current().sequence == 1


def test_an_older_release_is_refused_in_words(box: FakeBox, maker: Maker) -> None:
    older = maker.bundle(2)
    box.upgrade(maker.bundle(3))
    with pytest.raises(SigningError, match="older than number 3"):
        box.upgrade(older)


def test_the_same_release_is_refused_in_words(box: FakeBox, maker: Maker) -> None:
    bundle = maker.bundle(2)
    box.upgrade(bundle)
    with pytest.raises(ReleaseError, match="what this box runs already"):
        box.upgrade(bundle)


def test_a_stranger_s_bundle_is_refused_before_anything_is_unpacked(box: FakeBox, maker: Maker) -> None:
    with pytest.raises(SigningError, match="does not trust"):
        box.upgrade(maker.bundle(2, key=SecretKey.generate()))
    assert [path.name for path in box.layout.releases.iterdir() if path.is_dir()] == ["1-0.1"]


def test_a_damaged_bundle_is_refused(box: FakeBox, maker: Maker) -> None:
    bundle = maker.bundle(2)
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(SigningError, match="damaged"):
        box.upgrade(bundle)


def test_a_release_that_was_gone_back_from_may_come_again(box: FakeBox, maker: Maker) -> None:
    bundle = maker.bundle(2)
    box.upgrade(bundle)
    assert "The way back: appliance rollback" in box.said[-1]
    back(box)
    assert box.layout.current().sequence == 1
    # Another rollback leads nowhere: what is said leads on.
    assert "appliance upgrade FILE" in box.said[-1]
    with pytest.raises(ReleaseError, match=r"none on this box is older than 0\.1 \(number 1\)"):
        box.layout.previous(box.layout.current())
    box.upgrade(bundle)
    assert box.layout.current().sequence == 2


def back(box: FakeBox) -> None:
    with box.box.driving():
        current = box.layout.current()
        switch(box.box, "rollback", current, box.layout.previous(current))


def test_going_back_keeps_what_was_written(box: FakeBox, maker: Maker) -> None:
    box.upgrade(maker.bundle(2, schema=2))
    box.service.write("by the new release")
    back(box)
    assert box.service.release is not None
    assert box.service.release.sequence == 1
    assert {"first", "by the new release"} <= box.service.rows()
    box.service.write("and on")


def test_a_release_that_did_not_work_makes_no_other_one_old(box: FakeBox, maker: Maker) -> None:
    working = maker.bundle(2)
    with pytest.raises(ReleaseError):
        box.upgrade(maker.bundle(3, crashes=True))
    box.upgrade(working)
    assert box.layout.current().sequence == 2


def test_the_installer_may_run_again_after_going_back(
    box: FakeBox, maker: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(maker.folder.glob("appliance-0.1-1.tar.zst"))
    box.upgrade(maker.bundle(2))
    back(box)
    install_first(box.settings, box.box, first, box.layout.current().directory)
    assert capsys.readouterr().out.splitlines()[-1] == "present"


def test_there_is_no_way_back_from_the_first_release(box: FakeBox) -> None:
    with pytest.raises(ReleaseError, match="no release to go back to"):
        back(box)


def test_two_switches_do_not_meet(box: FakeBox, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.releases.journal.LOCK_WAIT_SECONDS", 0.1)
    with driving(box.layout.lock_path), pytest.raises(ReleaseError, match="going on"):
        box.upgrade(maker.bundle(2))


def test_a_dry_run_tries_and_switches_nothing(box: FakeBox, maker: Maker) -> None:
    upgrade(box.settings, box.box, maker.bundle(2), dry_run=True)
    assert [release.sequence for release in box.layout.all()] == [1]
    assert read_journal(box.layout.journal_path) is None


def test_a_start_on_a_quiet_box_changes_nothing(box: FakeBox) -> None:
    assert resume(box.box) == ""


def test_a_disk_that_is_too_full_for_copies_is_said_before_the_service_stops(
    box: FakeBox, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "free_bytes", lambda _: 1 << 20)
    starts = box.service.starts
    with pytest.raises(ApplianceError, match="MiB free"):
        box.upgrade(maker.bundle(2))
    assert box.service.starts == starts


def test_what_was_tried_when_the_power_failed_is_cleared_away_by_the_next_start(box: FakeBox) -> None:
    copy = box.settings.data_dir / ".upgrade-trial-1" / "packs" / ".staging-1"
    copy.mkdir(parents=True)
    (copy / "model.onnx").write_bytes(b"half of it")
    with box.box.driving():
        resume(box.box)
        assert copy.is_dir()  # somebody is at it
    resume(box.box)
    assert leftovers(box) == []


def test_a_journal_of_another_data_directory_closes_no_gate(box: FakeBox) -> None:
    write_cut_off(box.layout, "/elsewhere", "trial")
    box.service.write("open")


@pytest.mark.parametrize("phase", ["begun", "switching", "trial", "returning"])
def test_a_command_without_the_service_writes_nothing_while_releases_are_switched(
    box: FakeBox, phase: Phase
) -> None:
    write_cut_off(box.layout, box.settings.data_dir, phase)
    rows = box.service.rows()
    with pytest.raises(ControlError, match="being upgraded"):
        run_command(box.settings, "key.create", {"name": "laptop"})
    assert box.service.rows() == rows
