"""The unpacked copy of a backup: written into a folder and checked there, before anything is put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from appliance.accounts.secret import SECRET_BYTES, derive
from appliance.audit.chain import Head, parse_head
from appliance.audit.errors import AuditError
from appliance.audit.verification import Verification, verify
from appliance.backup.archive import peek_manifest, read_archive
from appliance.backup.errors import BackupError
from appliance.backup.keys import Identity
from appliance.backup.manifest import STORE, BackupFile, BackupManifest
from appliance.backup.snapshot import check_store
from appliance.disk import read_beginning, sync_directory, write_new
from appliance.storage.migrations import MIGRATIONS
from appliance.storage.sqlite import connect, sqlite, wrap


def unpack(file: BinaryIO, identities: Sequence[Identity], folder: Path) -> BackupManifest:
    """Write a backup's files into ``folder``, on disk when this returns, and check each store.

    The folder must hold none of them. Raises BackupError for anything but a whole backup that this program can
    read, and OSError; then the folder may hold any part of it.
    """
    require_known_schema(peek_manifest(file, identities))

    def write(entry: BackupFile, chunks: Iterator[bytes]) -> None:
        target = folder / entry.path
        target.parent.mkdir(mode=0o700, exist_ok=True)
        write_new(target, chunks, entry.mode)

    manifest = read_archive(file, identities, write)
    require_known_schema(manifest)
    for each in {folder, *((folder / entry.path).parent for entry in manifest.files)}:
        sync_directory(each)
    for entry in manifest.files:
        if entry.is_store:
            check_store(folder / entry.path)
    return manifest


def require_known_schema(manifest: BackupManifest) -> None:
    """Raise BackupError for the backup of a newer program."""
    if manifest.schema_version > len(MIGRATIONS):
        raise BackupError(
            f"the backup was made by a newer release ({manifest.version}, for schema {manifest.schema_version}; "
            f"this one knows up to {len(MIGRATIONS)}): install that release first"
        )


def read_secret(path: Path) -> bytes | None:
    """Return the secret in a file, None when there is none. Raises BackupError when it is no secret, OSError."""
    try:
        secret = read_beginning(path, SECRET_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(secret) != SECRET_BYTES:
        raise BackupError(f"{path} is no secret of a box: it has not {SECRET_BYTES} bytes")
    return secret


def verify_audit(folder: Path, manifest: BackupManifest, secret: bytes) -> Verification:
    """Check the copied audit log against the head that the backup was made with.

    Its MACs tell whether ``secret`` is the store's. Raises BackupError when it is not: no key would be accepted,
    and none of other servers could be opened. (A store without a line has no key either, and takes any secret.)
    """
    recorded = recorded_head(manifest)
    connection = connect(folder / STORE, read_only=True)
    try:
        found = verify(wrap(connection), derive(secret, "audit log"), [recorded])
    except sqlite.Error as error:
        raise BackupError(f"the copied store cannot be read: {error}") from error
    finally:
        connection.close()
    if found.lines == 0 and found.broken is not None:
        raise BackupError(
            "the secret does not fit this backup's store: with it, no key would be accepted. "
            "Give the one of the box that made the backup (--secret FILE)"
        )
    return found


def recorded_head(manifest: BackupManifest) -> Head:
    """Return the audit log's head as the manifest has it. Raises BackupError."""
    try:
        return parse_head(manifest.audit_head)
    except AuditError as error:
        raise BackupError(f"the backup's audit head is not valid: {error.message}") from error
