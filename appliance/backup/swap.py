"""Putting a restored data directory in the place of another, in one step, with the old one kept beside it.

Beside ``DIR`` stand, while it is restored, ``.DIR.restoring-*`` (what is being staged, with the file MARK in it;
without it, the old one after the swap) and ``.DIR.discarded-*``; afterwards ``DIR.before-restore-TIME``.
``settle`` finishes or undoes what was interrupted. Whatever happens, ``DIR`` is the old directory or the new one,
whole.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from appliance.backup.errors import BackupError
from appliance.backup.manifest import COLLECTIONS, STORE
from appliance.disk import exchange, remove, sync_directory, sync_file

MARK = ".restoring"
# What belongs to the stores that are replaced, or to a process that ran over them.
_REPLACED = frozenset(
    {STORE, f"{STORE}-wal", f"{STORE}-shm", COLLECTIONS, "appliance.lock", "control.sock", "spool", MARK}
)
# Large, and never written in place: the new directory has them by a second name.
_LINKED = ("packs", "backups")
# Copies of the stores that are replaced. Those of upgrades may hold packs too: a restore that is let in needs none.
_OWN = (".backup-", ".drill-", ".upgrade-")


def settle(directory: Path) -> list[Path]:
    """Clear up beside ``directory`` after an interrupted restore; return old directories found and named so."""
    found = []
    for each in _beside(directory, "discarded"):
        remove(each)
    for each in _beside(directory, "restoring"):
        if (each / MARK).exists() or not any(each.iterdir()):
            discard(each, directory)
        else:
            found.append(keep(each, directory))
    if (directory / MARK).exists():
        (directory / MARK).unlink()
        # Before the next swap: with it, this directory would then pass for one that was being staged.
        sync_directory(directory)
    return found


def is_settled(directory: Path) -> bool:
    """Tell whether no restore is going on or was cut off."""
    left = (*_beside(directory, "discarded"), *_beside(directory, "restoring"))
    return not left and not (directory / MARK).exists()


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Give an empty folder beside ``directory``, of the same owner; it is removed unless it was swapped in."""
    staged = directory.parent / f".{directory.name}.restoring-{secrets.token_hex(4)}"
    try:
        staged.mkdir(mode=0o700)
    except PermissionError as error:
        raise BackupError(
            f"the restored data are staged in {directory.parent}, where this user may not write: run this as root"
        ) from error
    owner = directory.stat() if directory.exists() else directory.parent.stat()
    if os.geteuid() == 0:
        os.chown(staged, owner.st_uid, owner.st_gid)
    try:
        with acting_as_owner(staged):
            (staged / MARK).touch(mode=0o600)
        yield staged
    finally:
        if (staged / MARK).exists():
            discard(staged, directory)


@contextlib.contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """As root, act as the owner of ``directory`` while this lasts: root's files would lock the service out."""
    status = directory.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def carry_over(old: Path, new: Path) -> None:
    """Give ``new`` what a backup does not hold of ``old``: packs and backups as links, small files as copies.

    What ``new`` has already stays. Raises OSError, BackupError.
    """
    for entry in sorted(old.iterdir()):
        target = new / entry.name
        if entry.name in _REPLACED or entry.name.startswith(_OWN) or os.path.lexists(target):
            continue
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy = _link if entry.name in _LINKED else _copy
            shutil.copytree(entry, target, symlinks=True, copy_function=copy)
        elif entry.is_file():
            _copy(str(entry), str(target))
    for folder, _, _ in os.walk(new):
        sync_directory(Path(folder))


def swap(staged: Path, directory: Path) -> Path | None:
    """Put ``staged`` in the place of ``directory``; return where the old one lies now, None without one.

    Before one atomic step all is as before, after it all is done but for names. Raises BackupError, OSError.
    """
    if not directory.exists():
        staged.rename(directory)
        sync_directory(directory.parent)
        (directory / MARK).unlink()
        return None
    try:
        exchange(staged, directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EBUSY):
            raise
        raise BackupError(
            f"{directory} cannot be swapped in one step here ({error.strerror}): is it a disk of its own? Restore "
            "into a folder on that disk (--into DIR), and set data_dir to it",
            status=500,
        ) from error
    sync_directory(directory.parent)
    before = keep(staged, directory)
    (directory / MARK).unlink()
    sync_directory(directory)
    return before


def keep(old: Path, directory: Path) -> Path:
    """Give the old directory its name for people."""
    before = directory.parent / f"{directory.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    while before.exists():
        before = before.with_name(f"{before.name}x")
    old.rename(before)
    sync_directory(directory.parent)
    return before


def discard(staged: Path, directory: Path) -> None:
    """Remove a staged folder. It loses its name first: half of it must not pass for an old directory."""
    gone = directory.parent / f".{directory.name}.discarded-{secrets.token_hex(4)}"
    staged.rename(gone)
    remove(gone)


def _beside(directory: Path, kind: str) -> list[Path]:
    if not directory.parent.is_dir():
        return []
    return sorted(directory.parent.glob(f".{glob.escape(directory.name)}.{kind}-*"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or another disk
        _copy(source, target)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)
    sync_file(Path(target))
