"""Making a backup: copies of one instant, checked, packed, read back, and only then given its name."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance import __version__
from appliance.audit.chain import head
from appliance.backup.archive import check_archive, describe, write_archive
from appliance.backup.errors import BackupError, BackupSpaceError, refusal
from appliance.backup.keys import Recipient, box_identity
from appliance.backup.manifest import (
    AUTHORITY,
    CONFIGURATION,
    SECRET,
    STORE,
    BackedUpPack,
    BackupManifest,
    is_path,
)
from appliance.backup.shelf import Shelf, new_name
from appliance.backup.snapshot import check_store, snapshot, stores_in
from appliance.clock import now_ms
from appliance.disk import free_bytes, work_folder
from appliance.packs.errors import PackError
from appliance.packs.manifest import MANIFEST_NAME
from appliance.packs.store import PackStore
from appliance.storage.database import Database
from appliance.storage.migrations import versions
from appliance.storage.sqlite import connect, sqlite, wrap

log = logging.getLogger(__name__)

# Left free for the stores and the journal.
RESERVE_BYTES = 256 << 20
# The beginning of the names of folders of copies in the clear: on the box's own disk, whereto the shelf may not
# belong.
COPIES = ".backup-"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is backed up.

    ``writers`` are all stores that this process has open for writing, under the lock of ``data_dir``;
    ``configuration`` is the file of the settings, if there is one; ``secret`` is the box's, 32 bytes.
    """

    data_dir: Path
    writers: Sequence[Database]
    packs: PackStore
    secret: bytes
    configuration: Path | None


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A backup just made. ``has_secret`` tells whether the secret and the authority are in it."""

    path: str
    name: str
    created: int
    size: int
    encrypted: bool
    has_secret: bool
    audit_head: str
    removed: list[str]


def create_backup(
    source: Source, shelf: Shelf, recipient: Recipient | None, *, daily: int, weekly: int
) -> Created:
    """Make a backup on ``shelf``, encrypted to ``recipient`` and the box itself where there is one.

    Then removes the older ones beyond those that ``daily`` and ``weekly`` keep. When this raises
    (BackupError), or the process dies at any instant, all older backups are there as before, and none is half
    there. May take minutes: for a thread.
    """
    identity = box_identity(source.secret)
    recipients = [] if recipient is None else [recipient, identity.public_key()]
    created = now_ms()
    name = new_name(created, encrypted=bool(recipients))
    try:
        with shelf.making() as work, work_folder(source.data_dir, COPIES) as copies:
            require_space(source, shelf)
            manifest = gather(source, copies, name, created, secret=bool(recipients))
            made = work / name
            write_archive(copies, manifest, made, recipients)
            # What the disk took, not what it was given.
            with made.open("rb") as file:
                check_archive(file, [identity])
            size = made.stat().st_size
            shelf.put(made, name)
        removed = shelf.prune(name, daily, weekly)
    except OSError as error:
        raise refusal(error, "make the backup") from error
    return Created(
        path=str(shelf.path / name),
        name=name,
        created=created,
        size=size,
        encrypted=bool(recipients),
        has_secret=manifest.has(SECRET),
        audit_head=manifest.audit_head,
        removed=removed,
    )


def require_space(source: Source, shelf: Shelf) -> None:
    """Raise BackupSpaceError unless copies and archive, should nothing shrink, fit on their disks."""
    stores = sum(_size(source.data_dir / name) for name in stores_in(source.data_dir))
    shared = source.data_dir.stat().st_dev == shelf.path.stat().st_dev
    for folder, bytes_ in ((source.data_dir, stores * (2 if shared else 1)), (shelf.path, stores)):
        needed, free = bytes_ + RESERVE_BYTES, free_bytes(folder)
        if free < needed:
            raise BackupSpaceError(
                f"a backup needs {needed >> 20} MiB free on the disk of {folder} (with "
                f"{RESERVE_BYTES >> 20} MiB to spare); {free >> 20} MiB are free. No older backup was removed"
            )


def gather(source: Source, work: Path, name: str, created: int, *, secret: bool) -> BackupManifest:
    """Put into ``work`` all that the backup holds, and return its manifest. Raises BackupError, OSError."""
    paths = snapshot(source.data_dir, source.writers, work)
    for path in paths:
        check_store(work / path)
    if source.configuration is not None and source.configuration.is_file():
        shutil.copyfile(source.configuration, work / CONFIGURATION)
        paths.append(CONFIGURATION)
    if secret:
        (work / SECRET).write_bytes(source.secret)
        paths.append(SECRET)
        paths += copy_authority(source.data_dir, work)
    connection = connect(work / STORE, read_only=True)
    try:
        store = wrap(connection)
        # Not the store's own: what a newer release left open to older ones, they must be able to restore.
        schema, last = versions(store)[1], head(store).text
    except sqlite.Error as error:
        raise BackupError(f"the copy of {STORE} cannot be read: {error}", status=500) from error
    finally:
        connection.close()
    return BackupManifest(
        name=name,
        created=created,
        version=__version__,
        schema_version=schema,
        audit_head=last,
        files=[describe(work, path) for path in paths],
        packs=installed(source.packs),
    )


def copy_authority(data_dir: Path, work: Path) -> list[str]:
    """Copy the certificates and keys that the box made for itself; return their paths."""
    folder = data_dir / AUTHORITY
    names = sorted(each.name for each in folder.iterdir() if each.is_file()) if folder.is_dir() else []
    paths = [path for path in (f"{AUTHORITY}/{name}" for name in names) if is_path(path)]
    if paths:
        (work / AUTHORITY).mkdir(mode=0o700)
    for path in paths:
        shutil.copyfile(data_dir / path, work / path)
    return paths


def installed(packs: PackStore) -> list[BackedUpPack]:
    """Return the packs that are installed and whole, by the hash of their manifest."""
    try:
        return [
            BackedUpPack(
                name=pack.name,
                version=pack.manifest.version,
                sha256=hashlib.sha256((pack.directory / MANIFEST_NAME).read_bytes()).hexdigest(),
            )
            for pack in packs.list()
            if pack.manifest is not None
        ]
    except PackError as error:
        # The stores are worth a backup without the list.
        log.warning("the backup has no list of packs: %s", error.message)
        return []


def _size(path: Path) -> int:
    """Return the bytes of a store with its write-ahead log."""
    log_file = path.with_name(f"{path.name}-wal")
    return sum(each.stat().st_size for each in (path, log_file) if each.exists())
