"""Which backups are listed, and which are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.backup.errors import BackupError
from appliance.backup.shelf import NEWEST_KEPT, Shelf, ShelvedBackup, new_name, surplus


def made(when: datetime) -> ShelvedBackup:
    created = int(when.timestamp() * 1000)
    return ShelvedBackup(name=new_name(created, encrypted=False), created=created, size=1, encrypted=False)


def test_only_whole_backups_are_listed_newest_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "backups")
    assert shelf.backups() == []
    assert shelf.newest() is None
    shelf.path.mkdir()
    names = [new_name(time, encrypted=time % 2 == 1) for time in (1_700_000_000_123, 1_700_000_001_000)]
    for name in names:
        (shelf.path / name).write_bytes(b"xx")
    (shelf.path / ".making-1").mkdir()
    (shelf.path / ".making-1" / names[0]).write_bytes(b"x")
    (shelf.path / f".{names[0]}.1.partial").write_bytes(b"x")
    (shelf.path / "notes.txt").write_bytes(b"x")
    (shelf.path / "backup-20261399T000000000Z-aaaaaa.tar.zst").write_bytes(b"no date")
    (shelf.path / new_name(0, encrypted=False)).symlink_to("/etc/passwd")
    found = shelf.backups()
    assert [each.name for each in found] == names[::-1]
    assert found[1] == ShelvedBackup(name=names[0], created=1_700_000_000_123, size=2, encrypted=True)


def test_days_and_weeks_are_kept() -> None:
    now = datetime(2026, 11, 25, 2, tzinfo=UTC)  # a Wednesday
    backups = [made(now - timedelta(hours=12 * number)) for number in range(120)]
    gone = surplus(backups, 7, 4)
    kept = [each for each in backups if each not in gone]
    assert backups[:NEWEST_KEPT] == kept[:NEWEST_KEPT]
    days = {datetime.fromtimestamp(each.created / 1000, UTC).date() for each in kept}
    assert {now.date() - timedelta(days=number) for number in range(7)} <= days
    weeks = {day.isocalendar()[:2] for day in days}
    assert len(weeks) == 4
    assert len(kept) <= NEWEST_KEPT + 7 + 4


def test_a_box_that_was_off_for_a_year_keeps_what_it_has() -> None:
    old = [made(datetime(2025, 1, day, tzinfo=UTC)) for day in range(10, 0, -1)]
    new = [made(datetime(2026, 6, 1, tzinfo=UTC))]
    kept = [each for each in new + old if each not in surplus(new + old, 7, 4)]
    assert len(kept) == 7  # the last seven days that have one; the week of the oldest is among them


def test_without_a_rule_all_stay() -> None:
    backups = [made(datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=number)) for number in range(50)]
    assert surplus(backups, 0, 0) == []
    assert len(surplus(backups, 1, 0)) == 50 - NEWEST_KEPT


def test_what_was_just_made_stays_whatever_the_clock_says(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for day in range(10):
        (tmp_path / made(datetime(2026, 1, 20, tzinfo=UTC) + timedelta(days=day)).name).touch()
    early = made(datetime(1970, 1, 2, tzinfo=UTC)).name
    (tmp_path / early).touch()
    assert early not in shelf.prune(early, 1, 0)
    assert (tmp_path / early).exists()
    assert len(shelf.backups()) == NEWEST_KEPT + 1


def test_what_a_wrong_clock_dated_pushes_out_no_backup(tmp_path: Path) -> None:
    shelf, today = Shelf(tmp_path), datetime(2026, 1, 20, tzinfo=UTC)
    days = [made(today - timedelta(days=number)).name for number in range(7)]
    to_come = [made(datetime(2036, 1, 1, tzinfo=UTC) + timedelta(days=number)).name for number in range(20)]
    for name in (*days, *to_come):
        (tmp_path / name).touch()
    gone = shelf.prune(days[0], 7, 0)
    assert not set(gone) & set(days)
    # They do not pile up either.
    assert len(shelf.backups()) == 14


def test_the_newest_is_one_that_can_be(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    to_come, now = made(datetime(2126, 1, 1, tzinfo=UTC)).name, made(datetime.now(UTC)).name
    (tmp_path / to_come).touch()
    found = shelf.newest()
    assert found is not None
    assert found.name == to_come
    (tmp_path / now).touch()
    found = shelf.newest()
    assert found is not None
    assert found.name == now


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "/dev/null"])
def test_what_can_be_no_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackupError):
        Shelf(tmp_path).find(name)
