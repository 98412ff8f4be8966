"""Restoring: the right secret, an empty place or a stopped box, and what was there is kept."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import sqlite_utils

from appliance.accounts.secret import derive
from appliance.audit.chain import parse_head
from appliance.audit.verification import verify
from appliance.backup import restoring
from appliance.backup.errors import BackupError, BackupSpaceError
from appliance.backup.keys import Identity, new_identity
from appliance.backup.restoring import RESTORED_CONFIGURATION, restore_box, restore_folder
from appliance.backup.swap import MARK, swap
from appliance.config import Settings
from appliance.control.errors import ControlError
from appliance.control.stores import exclusive_lock
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS, open_to
from tests.backup.sample import CONFIGURATION, add_line, backup, box, lines
from tests.service import clean_environment

OPERATOR = new_identity()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a directory with a box in ``data``, ``plain`` and ``sealed`` backups of it, and a line since."""
    home = tmp_path / "home"
    home.mkdir()
    with box(home) as source:
        add_line(source.writers[0], source.secret, "saved")
        for name, key in (("plain", None), ("sealed", OPERATOR.public_key())):
            (home / name).write_bytes(Path(backup(source, key).path).read_bytes())
        add_line(source.writers[0], source.secret, "later")
    return home


def restore(home: Path, name: str, *identities: Identity, **options: bytes) -> restoring.Restored:
    settings = Settings(data_dir=home / "data")
    with (home / name).open("rb") as file:
        return restore_box(settings, file, identities, exclusive_lock, **options)


def test_a_box_is_as_it_was_and_what_it_was_since_is_kept(home: Path) -> None:
    data = home / "data"
    (data / "trust.json").write_text("sequences")
    (data / "spool").mkdir()
    secret = (data / "secret.key").read_bytes()
    restored = restore(home, "plain")
    assert lines(data / "appliance.db") == ["saved", restored.manifest.name]
    assert restored.before is not None
    assert restored.before.name.startswith("data.before-restore-")
    assert lines(restored.before / "appliance.db") == ["saved", "later"]
    assert restored.missing_packs == []
    assert (data / "secret.key").read_bytes() == secret
    assert (data / "trust.json").read_text() == "sequences"
    assert (data / RESTORED_CONFIGURATION).read_text() == CONFIGURATION
    assert not (data / "spool").exists()
    assert len(list((data / "backups").glob("backup-*"))) == 2
    # Weights are not there twice.
    model = "packs/sample/model.onnx"
    assert (data / model).stat().st_ino == (restored.before / model).stat().st_ino
    with box(home) as source:
        found = source.writers[0].read_sync(lambda db: verify(db, derive(secret, "audit log")))
        assert found.broken is None
        head = parse_head(restored.manifest.audit_head)
        chain = source.writers[0].read_sync(lambda db: verify(db, derive(secret, "audit log"), [head]))
        assert chain.broken is None


def test_a_new_box_needs_the_operators_key_only(home: Path, tmp_path: Path) -> None:
    secret = (home / "data/secret.key").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    with box(other, packs=False) as source:  # a box with a life and a secret of its own
        add_line(source.writers[0], source.secret, "another life")
    (other / "sealed").write_bytes((home / "sealed").read_bytes())
    with pytest.raises(BackupError, match="encrypted"):
        restore(other, "sealed")
    with pytest.raises(BackupError, match="to another key"):
        restore(other, "sealed", new_identity())
    assert lines(other / "data/appliance.db") == ["another life"]
    restored = restore(other, "sealed", OPERATOR)
    assert restored.missing_packs == ["sample"]
    assert (other / "data/secret.key").read_bytes() == secret
    assert lines(other / "data/appliance.db")[0] == "saved"


def test_a_secret_that_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    secret = (home / "data/secret.key").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    with box(other) as source:
        add_line(source.writers[0], source.secret, "another life")
    (other / "plain").write_bytes((home / "plain").read_bytes())
    with pytest.raises(BackupError, match="does not fit"):
        restore(other, "plain")
    with pytest.raises(BackupError, match="does not fit"):
        restore(other, "plain", secret=os.urandom(32))
    assert sorted(each.name for each in other.iterdir()) == ["appliance.toml", "data", "plain"]
    restore(other, "plain", secret=secret)
    assert (other / "data/secret.key").read_bytes() == secret
    assert lines(other / "data/appliance.db")[0] == "saved"


def test_a_box_without_any_secret_is_told(home: Path) -> None:
    (home / "data/secret.key").unlink()
    with pytest.raises(BackupError, match="--secret FILE"):
        restore(home, "plain")
    assert lines(home / "data/appliance.db") == ["saved", "later"]


def test_a_secret_outside_is_the_one_that_must_fit(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "credential"
    (home / "data/secret.key").rename(outside)
    settings = Settings(data_dir=home / "data")
    if "secret_file" not in Settings.__struct_fields__:
        pytest.skip("secrets lie in the data directory only")
    settings = msgspec.structs.replace(settings, secret_file=outside)
    with (home / "sealed").open("rb") as file:
        restore_box(settings, file, [OPERATOR], exclusive_lock)
    assert not (home / "data/secret.key").exists()
    outside.write_bytes(os.urandom(32))
    with (home / "sealed").open("rb") as file, pytest.raises(BackupError, match="does not fit"):
        restore_box(settings, file, [OPERATOR], exclusive_lock)


def test_a_box_that_runs_is_not_restored(home: Path) -> None:
    with exclusive_lock(home / "data/appliance.lock"), pytest.raises(ControlError):
        restore(home, "plain")
    assert lines(home / "data/appliance.db") == ["saved", "later"]


def test_nobody_starts_in_the_middle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def swap_and_start(staged: Path, directory: Path) -> Path | None:
        before = swap(staged, directory)
        with pytest.raises(ControlError), exclusive_lock(directory / "appliance.lock"):
            pass
        tried.append(directory)
        return before

    monkeypatch.setattr(restoring, "swap", swap_and_start)
    restore(home, "plain")
    assert tried


def next_start(home: Path) -> str:
    """Do what the unit does before the service starts; return what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "--data-dir", str(home / "data"), "upgrade", "--resume"],
        capture_output=True,
        text=True,
        env=clean_environment(APPLIANCE_RELEASES_DIR=str(home / "opt")),
        timeout=60,
        check=True,
    )
    return done.stderr


def test_the_next_start_clears_up_after_a_restore_that_was_cut_off(home: Path) -> None:
    data, half = home / "data", home / ".data.restoring-1234"
    half.mkdir()
    (half / MARK).touch()
    (half / "secret.key").touch()
    with exclusive_lock(data / "appliance.lock"):  # as a restore that is going on has it
        assert next_start(home) == ""
        assert half.exists()
    assert next_start(home) == ""
    assert not list(home.glob(".data.*"))
    assert lines(data / "appliance.db") == ["saved", "later"]


def test_the_next_start_names_the_data_of_before_where_a_restore_was_cut_off_after_the_swap(
    home: Path,
) -> None:
    data = home / "data"
    restored = restore(home, "plain")
    assert restored.before is not None
    restored.before.rename(home / ".data.restoring-1234")
    (data / MARK).touch()
    said = next_start(home)
    (before,) = home.glob("data.before-restore-*")
    assert str(before) in said
    assert lines(before / "appliance.db") == ["saved", "later"]
    assert lines(data / "appliance.db") == ["saved", restored.manifest.name]
    assert not (data / MARK).exists()
    assert next_start(home) == ""


@pytest.mark.parametrize("position", [10, 500, -20])
def test_a_damaged_backup_changes_nothing(home: Path, position: int) -> None:
    data = bytearray((home / "sealed").read_bytes())
    data[position] ^= 1
    (home / "sealed").write_bytes(data)
    with pytest.raises(BackupError):
        restore(home, "sealed", OPERATOR)
    assert lines(home / "data/appliance.db") == ["saved", "later"]
    assert sorted(each.name for each in home.iterdir()) == ["appliance.toml", "data", "plain", "sealed"]


def test_a_full_disk_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "free_bytes", lambda _path: 1000)
    with pytest.raises(BackupSpaceError):
        restore(home, "plain")
    assert lines(home / "data/appliance.db") == ["saved", "later"]


def test_into_a_folder(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    restored = restore_folder(target, io.BytesIO((home / "plain").read_bytes()), [])
    assert (restored.has_secret, restored.audit) == (False, None)
    assert lines(target / "appliance.db") == ["saved"]
    assert target.stat().st_mode & 0o777 == 0o700
    with pytest.raises(BackupError, match="not empty"):
        restore_folder(target, io.BytesIO((home / "plain").read_bytes()), [])
    empty = tmp_path / "empty"
    empty.mkdir()
    restored = restore_folder(empty, io.BytesIO((home / "sealed").read_bytes()), [OPERATOR])
    assert restored.has_secret
    assert restored.audit is not None
    assert restored.audit["whole"]
    with pytest.raises(BackupError):
        restore_folder(tmp_path / "none", io.BytesIO((home / "sealed").read_bytes()[:-1]), [OPERATOR])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "home", "target"]


@open_to(len(MIGRATIONS))
def _adds(database: sqlite_utils.Database) -> None:
    database.execute("CREATE TABLE later (name TEXT PRIMARY KEY) STRICT")


def _changes(database: sqlite_utils.Database) -> None:
    database.execute("CREATE TABLE much_later (name TEXT PRIMARY KEY) STRICT")


def test_after_a_rollback_a_box_restores_its_own_backups(tmp_path: Path) -> None:
    """The newer release has migrated the store, and left it open to this program, which backs it up."""
    with box(tmp_path):
        pass
    Database.open(tmp_path / "data" / "appliance.db", (*MIGRATIONS, _adds)).close()
    with box(tmp_path) as source:
        add_line(source.writers[0], source.secret, "after the rollback")
        made = backup(source)
        (tmp_path / "plain").write_bytes(Path(made.path).read_bytes())
    restored = restore(tmp_path, "plain")
    assert restored.manifest.schema_version == len(MIGRATIONS)
    assert "after the rollback" in lines(tmp_path / "data" / "appliance.db")


def test_a_backup_of_a_store_that_only_newer_programs_open_is_refused(tmp_path: Path) -> None:
    with box(tmp_path) as source:
        settings = Settings(data_dir=source.data_dir)
    newer = Database.open(settings.database_path, (*MIGRATIONS, _adds, _changes))
    try:
        made = backup(msgspec.structs.replace(source, writers=[newer]))
    finally:
        newer.close()
    (tmp_path / "plain").write_bytes(Path(made.path).read_bytes())
    with pytest.raises(BackupError, match="newer release"):
        restore(tmp_path, "plain")
