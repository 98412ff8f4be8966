"""The ages of the last backup and drill, in the metrics and for the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from appliance.api.monitoring.backups import BackupCollector
from appliance.backup.drill import FOLDER, one_drill
from appliance.backup.errors import BackupError
from appliance.backup.record import DrillRecord, last_backup, read_drill, write_drill
from appliance.backup.shelf import new_name
from appliance.cli.backup import recorded
from appliance.config import Settings
from appliance.doctor.backups import DAY_MS, check_backups
from tests.backup.sample import backup, box


def test_ages_are_absent_before_there_is_one_and_then_true(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    registry = CollectorRegistry()
    registry.register(BackupCollector(settings))
    backup_age, drill_age = "appliance_backup_age_seconds", "appliance_backup_drill_age_seconds"
    with box(tmp_path) as source:
        assert registry.get_sample_value(backup_age) is None
        assert registry.get_sample_value(drill_age) is None
        made = backup(source)
    age = registry.get_sample_value(backup_age)
    assert age is not None
    assert 0 <= age < 60
    write_drill(
        settings.drill_path,
        DrillRecord(at=made.created, good_at=made.created - 5000, backup=made.name, problem="x"),
    )
    age = registry.get_sample_value(drill_age)
    assert age is not None
    assert 5 <= age < 65
    Path(made.path).unlink()
    assert last_backup(settings) is None


def test_a_time_to_come_is_no_age_and_the_doctor_says_so(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    registry = CollectorRegistry()
    registry.register(BackupCollector(settings))
    with box(tmp_path) as source:
        made = backup(source)
    later = made.created + 400 * DAY_MS
    write_drill(settings.drill_path, DrillRecord(at=later, good_at=later, backup=made.name, problem=None))
    assert registry.get_sample_value("appliance_backup_drill_age_seconds") is None
    assert "yet to come" in check_backups(settings, made.created / 1000).detail
    Path(made.path).rename(settings.backups_path / new_name(later, encrypted=False))
    assert registry.get_sample_value("appliance_backup_age_seconds") is None
    found = check_backups(settings, made.created / 1000)
    assert found.level == "warning"
    assert "yet to come" in found.detail


def test_a_failed_drill_keeps_the_time_of_the_good_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)

    def fail() -> None:
        raise BackupError("it does not boot")

    recorded(settings, "one", lambda: None)
    good = read_drill(settings.drill_path)
    with pytest.raises(BackupError):
        recorded(settings, "two", fail)
    found = read_drill(settings.drill_path)
    assert good is not None
    assert found is not None
    assert (good.problem, found.problem) == (None, "it does not boot")
    assert found.good_at == good.good_at is not None
    assert found.at >= good.at
    settings.drill_path.write_text("{")
    assert read_drill(settings.drill_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"at":1,"good_at":1,"backup":"\xff","problem":null}',
        b'{"x":' + b"[" * 100_000,
        b'{"at":9999999999999999,"good_at":1,"backup":"x","problem":null}',
    ],
)
def test_a_damaged_record_of_drills_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "drill.json").write_bytes(content)
    assert read_drill(tmp_path / "drill.json") is None


def test_one_drill_is_made_at_a_time(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / f"{FOLDER}1").mkdir()
    with (
        one_drill(settings.data_dir),
        pytest.raises(BackupError, match="another drill"),
        one_drill(settings.data_dir),
    ):
        recorded(settings, "two", lambda: None)
    assert read_drill(settings.drill_path) is None
    assert (tmp_path / f"{FOLDER}1").is_dir()
    with one_drill(settings.data_dir):
        recorded(settings, "three", lambda: None)


def test_the_doctor_says_what_was_forgotten(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert check_backups(settings, 0).detail == "nothing to back up yet"
    with box(tmp_path) as source:
        assert "There is no backup" in check_backups(settings, 0).detail
        made = backup(source)
    now = made.created / 1000
    assert "none was ever tried" in check_backups(settings, now).detail
    record = DrillRecord(at=made.created, good_at=made.created, backup=made.name, problem=None)
    write_drill(settings.drill_path, record)
    assert check_backups(settings, now).level == "ok"
    assert "9 days old" in check_backups(settings, now + 9 * DAY_MS / 1000).detail
    early = DrillRecord(at=made.created, good_at=made.created - 200 * DAY_MS, backup=made.name, problem=None)
    write_drill(settings.drill_path, early)
    assert "200 days ago" in check_backups(settings, now).detail
    failed = DrillRecord(at=made.created, good_at=made.created, backup=made.name, problem="no boot")
    write_drill(settings.drill_path, failed)
    assert "no boot" in check_backups(settings, now).detail
