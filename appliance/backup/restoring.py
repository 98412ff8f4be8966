"""Restoring: unpack beside, check, and only then put in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from appliance.accounts.secret import derive
from appliance.audit.log import COMMAND_LINE, AuditLog
from appliance.backup.archive import peek_manifest
from appliance.backup.copies import read_secret, unpack, verify_audit
from appliance.backup.errors import BackupError, BackupSpaceError, refusal
from appliance.backup.keys import Identity
from appliance.backup.manifest import CONFIGURATION, SECRET, STORE, BackupManifest
from appliance.backup.swap import acting_as_owner, carry_over, is_settled, settle, staging, swap
from appliance.config import Settings
from appliance.disk import free_bytes, sync_directory, write_whole
from appliance.packs.manifest import MANIFEST_NAME
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS

# The configuration of a backup lies here in the data directory: the one in use is the operator's to change.
RESTORED_CONFIGURATION = "restored-appliance.toml"
RESERVE_BYTES = 64 << 20

# Holds the exclusive lock of a data directory, given its lock file; raises when it is taken.
Lock = Callable[[Path], AbstractContextManager[None]]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. ``before`` is where the data that were there lie now.

    ``audit`` is what the check of the audit log found, None where no secret was there to check it;
    ``missing_packs`` were installed when the backup was made and are not, or are others, now.
    """

    directory: Path
    before: Path | None
    manifest: BackupManifest
    has_secret: bool
    audit: dict[str, Any] | None
    missing_packs: list[str]
    configuration: Path | None


def restore_folder(
    folder: Path, file: BinaryIO, identities: Sequence[Identity], secret: bytes | None = None
) -> Restored:
    """Restore a backup into a folder that does not exist or is empty; it appears whole.

    Without a secret (none in the backup, none given) the store is restored all the same, and no key will work
    before its secret lies beside it. Raises BackupError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackupError(f"{folder} is not empty: restore into a new folder")
    try:
        settle(folder)
        with staging(folder) as staged, acting_as_owner(staged):
            require_space(peek_manifest(file, identities), folder.parent)
            manifest = unpack(file, identities, staged)
            known = secret or read_secret(staged / SECRET)
            audit = None if known is None else verify_audit(staged, manifest, known).shown()
            if known is not None:
                put_secret(staged, known)
            sync_directory(staged)
            configuration = set_aside_configuration(staged)
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            swap(staged, folder)
    except OSError as error:
        raise refusal(error, "restore the backup") from error
    return Restored(
        directory=folder,
        before=None,
        manifest=manifest,
        has_secret=known is not None,
        audit=audit,
        missing_packs=missing_packs(folder, manifest),
        configuration=folder / RESTORED_CONFIGURATION if configuration else None,
    )


def restore_box(
    settings: Settings,
    file: BinaryIO,
    identities: Sequence[Identity],
    lock: Lock,
    *,
    secret: bytes | None = None,
) -> Restored:
    """Restore a backup in the place of the box's data, which are kept beside; the service must not run.

    When this raises (BackupError, or what ``lock`` raises), or the process dies at any instant, the data are the
    old ones or the restored ones, whole. The secret comes from the backup, from ``secret``, or stays; it must fit.
    """
    directory = settings.data_dir.resolve()
    if os.path.ismount(directory):
        raise BackupError(
            f"{directory} is a disk of its own, which cannot be swapped: restore into a folder on it "
            "(--into DIR), and set data_dir to that"
        )
    with contextlib.ExitStack() as locks:
        try:
            if directory.exists():
                with acting_as_owner(directory):
                    locks.enter_context(lock(directory / settings.lock_path.name))
            settle(directory)
            with staging(directory) as staged:
                with acting_as_owner(staged):
                    # Whoever starts right after the swap must wait for the end of this too.
                    locks.enter_context(lock(staged / settings.lock_path.name))
                    manifest, audit, configuration = _stage(
                        settings, directory, staged, file, identities, secret
                    )
                before = swap(staged, directory)
        except OSError as error:
            raise refusal(error, "restore the backup") from error
        return Restored(
            directory=directory,
            before=before,
            manifest=manifest,
            has_secret=True,
            audit=audit,
            missing_packs=missing_packs(directory, manifest),
            configuration=directory / RESTORED_CONFIGURATION if configuration else None,
        )


def settle_box(settings: Settings, lock: Lock) -> list[Path]:
    """Clear up after a restore that was cut off; return where the data of before lie, if it had come to the swap.

    Raises what ``lock`` raises while a restore or the service is at work, BackupError.
    """
    directory = settings.data_dir.resolve()
    if is_settled(directory) or not (directory / STORE).exists():
        return []
    try:
        with contextlib.ExitStack() as locks:
            with acting_as_owner(directory):
                locks.enter_context(lock(directory / settings.lock_path.name))
            return settle(directory)
    except OSError as error:
        raise refusal(error, "clear up after a restore") from error


def _stage(
    settings: Settings,
    directory: Path,
    staged: Path,
    file: BinaryIO,
    identities: Sequence[Identity],
    given: bytes | None,
) -> tuple[BackupManifest, dict[str, Any], bool]:
    """Make ``staged`` the data directory that the box will have. Raises BackupError, OSError."""
    require_space(peek_manifest(file, identities), directory.parent)
    manifest = unpack(file, identities, staged)
    outside = settings.secret_path.parent.resolve() != directory
    present = read_secret(settings.secret_path)
    # A secret that lies outside is the one that the service will use, whatever is restored.
    secret = (present if outside else None) or given or read_secret(staged / SECRET) or present
    if secret is None:
        raise BackupError(
            f"the backup is not encrypted, so it holds no secret, and there is none at {settings.secret_path}: "
            "give the secret.key of the box that made it (--secret FILE)"
        )
    audit = verify_audit(staged, manifest, secret).shown()
    if outside:
        (staged / SECRET).unlink(missing_ok=True)
    else:
        put_secret(staged, secret)
    configuration = set_aside_configuration(staged)
    if directory.exists():
        carry_over(directory, staged)
    database = Database.open(staged / STORE, MIGRATIONS)
    try:
        log = AuditLog(derive(secret, "audit log"))
        details = {"created": manifest.created, "version": manifest.version, "head": manifest.audit_head}
        database.write_sync(lambda db: log.append(db, COMMAND_LINE, "backup.restore", manifest.name, details))
    finally:
        database.close()
    sync_directory(staged)
    return manifest, audit, configuration


def require_space(manifest: BackupManifest, disk: Path) -> None:
    """Raise BackupSpaceError unless the files of a backup fit on the disk of a folder."""
    needed, free = sum(file.size for file in manifest.files) + RESERVE_BYTES, free_bytes(disk)
    if free < needed:
        raise BackupSpaceError(
            f"restoring needs {needed >> 20} MiB free on the disk of {disk}; {free >> 20} MiB are free"
        )


def put_secret(folder: Path, secret: bytes) -> None:
    """Write the secret beside its store, on disk when this returns."""
    write_whole(folder / SECRET, secret, 0o600)


def set_aside_configuration(folder: Path) -> bool:
    """Give the restored configuration its name; tell whether there was one."""
    if not (folder / CONFIGURATION).exists():
        return False
    (folder / CONFIGURATION).rename(folder / RESTORED_CONFIGURATION)
    return True


def missing_packs(directory: Path, manifest: BackupManifest) -> list[str]:
    """Return the names of packs that the backup lists and ``directory`` does not have, or not the same."""

    def same(name: str, sha256: str) -> bool:
        try:
            text = (directory / "packs" / name / MANIFEST_NAME).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(text).hexdigest() == sha256

    return [pack.name for pack in manifest.packs if not same(pack.name, pack.sha256)]
