"""The stores and packs as they were before a new release opened them: copies in the data directory, and back again.

All of it is done as the owner of the data directory: names in there are the service's to choose, and root
must not follow them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from appliance.backup.creation import installed
from appliance.backup.manifest import STORE
from appliance.backup.snapshot import check_store, snapshot, stores_in
from appliance.backup.swap import acting_as_owner
from appliance.disk import free_bytes, remove, sync_directory, sync_file
from appliance.packs.copies import copy_packs, put_packs_back
from appliance.packs.store import PackStore
from appliance.releases.errors import ReleaseError
from appliance.storage.migrations import versions
from appliance.storage.sqlite import connect, sqlite, wrap

SNAPSHOT = ".upgrade-before-"
TRIAL = ".upgrade-trial-"
PACK_LIST = "packs.json"
PACKS = "packs"
RESERVE_BYTES = 256 << 20


def new_name(prefix: str) -> str:
    """Return the name of a new folder in the data directory."""
    return f"{prefix}{secrets.token_hex(8)}"


def has_store(data_dir: Path) -> bool:
    """Tell whether a service ever ran here."""
    return (data_dir / stores_in(data_dir)[0]).exists()


def require_room(data_dir: Path, copies: int) -> None:
    """Raise ReleaseError unless so many copies of the stores fit on their disk."""
    stores = sum(_size(data_dir / name) for name in stores_in(data_dir))
    needed, free = copies * stores + RESERVE_BYTES, free_bytes(data_dir)
    if free < needed:
        raise ReleaseError(
            f"a copy of the stores needs {needed >> 20} MiB free on the disk of {data_dir}; {free >> 20} MiB are "
            "free. Nothing was changed",
            status=507,
        )


def take(data_dir: Path, name: str) -> None:
    """Copy every store, and the packs by second names of their files; whole and on disk when this returns.

    Nobody may write meanwhile. Raises ReleaseError, BackupError, PackError, OSError.
    """
    folder = data_dir / name
    folder.mkdir(mode=0o700)
    if has_store(data_dir):
        for each in snapshot(data_dir, (), folder):
            check_store(folder / each)
    copy_packs(data_dir / PACKS, folder / PACKS)
    packs = installed(PackStore(data_dir / PACKS))
    (folder / PACK_LIST).write_bytes(msgspec.json.format(msgspec.json.encode(packs), indent=1))
    for place, _, files in os.walk(folder):
        for file in files:
            sync_file(Path(place) / file)
        sync_directory(Path(place))
    sync_directory(data_dir)


def is_there(data_dir: Path, name: str) -> bool:
    """Tell whether a snapshot is there, whole."""
    return (data_dir / name / PACK_LIST).exists()


def put_back(data_dir: Path, name: str) -> list[str]:
    """Put the stores and packs of a snapshot in place of the present ones, which nobody may have open.

    May be interrupted at any instant and done again: the snapshot stays. Returns the names of the packs that had
    changed. Raises OSError, PackError, ReleaseError.
    """
    folder = data_dir / name
    if not is_there(data_dir, name):
        raise ReleaseError(f"the snapshot {folder} is gone: restore a backup", status=500)
    there = [each for each in stores_in(folder) if (folder / each).exists()]
    # What the new release made: no store of the old one.
    for each in stores_in(data_dir):
        if each not in there:
            _drop(data_dir / each)
    for each in there:
        target = data_dir / each
        target.parent.mkdir(mode=0o700, exist_ok=True)
        copy = target.with_name(f".{target.name}.returning")
        copy.unlink(missing_ok=True)
        if target.exists() and target.samefile(folder / each):
            continue  # done before the interruption
        # By a second name: at once, however large it is. Nobody writes before the snapshot is cleared away.
        os.link(folder / each, copy)
        # Before the store: frames of a log must never be played into another file.
        _drop_logs(target)
        sync_directory(target.parent)
        copy.rename(target)
        sync_directory(target.parent)
    return put_packs_back(data_dir / PACKS, folder / PACKS)


def clear(data_dir: Path, keep: str = "") -> None:
    """Remove snapshots and trial copies, but for the one named ``keep``."""
    if not data_dir.is_dir():
        return
    for path in data_dir.iterdir():
        if path.name.startswith((SNAPSHOT, TRIAL)) and path.name != keep:
            remove(path)


def _drop(store: Path) -> None:
    _drop_logs(store)
    store.unlink(missing_ok=True)


def _drop_logs(store: Path) -> None:
    for suffix in ("-wal", "-shm"):
        store.with_name(f"{store.name}{suffix}").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}-wal")) if each.exists())


def oldest_reader_of(data_dir: Path) -> int:
    """Return the oldest schema whose programs may open the store; 0 without one."""
    store = data_dir / STORE
    if not store.exists():
        return 0
    with acting_as_owner(data_dir):
        connection = connect(store, read_only=True)
        try:
            return versions(wrap(connection))[1]
        except sqlite.Error as error:
            raise ReleaseError(f"the store cannot be read: {error}", status=500) from error
        finally:
            connection.close()
