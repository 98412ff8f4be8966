"""Making a backup: what is in it, and that a failing one changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.audit.chain import head
from appliance.backup import creation, shelf
from appliance.backup.archive import check_archive
from appliance.backup.errors import BackupError, BackupSpaceError
from appliance.backup.keys import new_identity
from appliance.packs.lock import hold_if_free
from tests.backup.sample import add_line, backup, box
from tests.packs.sample import contents, write_pack


def listed(source: creation.Source) -> list[str]:
    return [each.name for each in shelf.Shelf(source.data_dir / "backups").backups()]


def test_an_encrypted_backup_has_the_secrets_and_another_has_not(tmp_path: Path) -> None:
    operator = new_identity()
    with box(tmp_path) as source:
        (source.data_dir / "tls").mkdir()
        (source.data_dir / "tls" / "authority.pem").write_text("key and certificate")
        (source.data_dir / "tls" / ".authority.new").write_text("half")
        add_line(source.writers[0], source.secret, "x")
        plain, sealed = backup(source), backup(source, operator.public_key())
        assert plain.audit_head == source.writers[0].read_sync(head).text
    assert (plain.encrypted, plain.has_secret) == (False, False)
    assert (sealed.encrypted, sealed.has_secret) == (True, True)
    with Path(plain.path).open("rb") as file:
        names = {each.path for each in check_archive(file, []).files}
    assert names == {"appliance.db", "appliance.toml"}
    with Path(sealed.path).open("rb") as file:
        names = {each.path for each in check_archive(file, [operator]).files}
    assert names == {"appliance.db", "appliance.toml", "secret.key", "tls/authority.pem"}
    for made in (plain, sealed):
        assert Path(made.path).stat().st_mode & 0o777 == 0o600
        assert Path(made.path).stat().st_size == made.size
    data = Path(sealed.path).read_bytes()
    assert source.secret not in data
    assert b"SQLite format" not in data
    assert source.secret not in Path(plain.path).read_bytes()


def test_whatever_a_pack_calls_its_version_keeps_no_box_from_being_backed_up(tmp_path: Path) -> None:
    with box(tmp_path, packs=False) as source:
        source.packs.install(write_pack(tmp_path / "pack", contents(1), version='"1\\t\\u0085"'))
        made = backup(source)
        with Path(made.path).open("rb") as file:
            assert check_archive(file, []).packs[0].version == "1\t\u0085"


def test_nothing_but_the_backup_is_left(tmp_path: Path) -> None:
    with box(tmp_path) as source:
        made = backup(source)
        names = {each.name for each in (source.data_dir / "backups").iterdir()}
        assert names == {".lock", made.name}
        assert not list(source.data_dir.glob(f"{creation.COPIES}*"))


@pytest.mark.parametrize("where", ["check_store", "write_archive", "check_archive", "snapshot"])
def test_a_failing_backup_removes_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with box(tmp_path) as source:
        for _ in range(shelf.NEWEST_KEPT + 1):
            backup(source, daily=0, weekly=0)
        before = listed(source)
        monkeypatch.setattr(creation, where, fail)
        with pytest.raises(BackupSpaceError, match="No space left"):
            backup(source, daily=1, weekly=0)
        assert listed(source) == before
        monkeypatch.undo()
        made = backup(source, daily=1, weekly=0)
        assert len(made.removed) == 2
        assert listed(source)[0] == made.name


def test_a_disk_without_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with box(tmp_path) as source:
        monkeypatch.setattr(creation, "free_bytes", lambda _path: creation.RESERVE_BYTES)
        with pytest.raises(BackupSpaceError, match="No older backup was removed"):
            backup(source)
        assert listed(source) == []


def test_one_backup_is_made_at_a_time(tmp_path: Path) -> None:
    with box(tmp_path) as source:
        backup(source)
        with hold_if_free(source.data_dir / "backups" / ".lock") as held:
            assert held
            with pytest.raises(BackupError, match="another backup is being made"):
                backup(source)
