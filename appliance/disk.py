"""Writes that survive a power cut: files and folders that are on disk before they count."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

# What a directory is called while it is removed.
REMOVED = ".removed-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def sync_directory(directory: Path) -> None:
    """Put the names in ``directory`` on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_beginning(path: Path, most: int) -> bytes:
    """Return the first ``most`` bytes of what an operator named: a file, also a device or a pipe.

    Raises OSError, also for a pipe that nobody writes to: to open it as a file would wait for good.
    """

    def opened(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
        return descriptor

    with open(path, "rb", opener=opened) as file:
        data = file.read(most)
    if most and not data and path.is_fifo():
        raise OSError(errno.EPIPE, "nobody writes to this pipe", str(path))
    return data


def refuse_special(path: Path) -> None:
    """Raise OSError where a file that replaces ``path`` would remove a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # there is none, or the writing itself says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is there already, and is no regular file", str(path))


def write_whole(path: Path, data: bytes, mode: int, *, replace: bool = True) -> None:
    """Write a file so that after a crash at any instant it is there whole, as before, or not at all.

    When root writes into another user's folder, the file becomes that user's. Raises OSError;
    FileExistsError when ``replace`` is false and there is one.
    """
    refuse_special(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            folder = path.parent.stat()
            if os.geteuid() == 0 and folder.st_uid != 0:
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)  # unlike a rename this fails where there is one
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_new(path: Path, chunks: Iterable[bytes], mode: int, exactly: int | None = None) -> None:
    """Write a file that must not be there yet; its bytes are on disk when this returns, its name may not be.

    It has ``mode`` without what the umask takes, and in the end ``exactly`` that mode if there is one. Raises
    OSError, and what ``chunks`` raise; the file is gone then.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            for chunk in chunks:
                remaining = memoryview(chunk)
                while remaining:
                    remaining = remaining[file.write(remaining) or 0 :]
            if exactly is not None:
                os.fchmod(file.fileno(), exactly)
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def taking_the_place_of(target: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``target`` at the end, whole and on disk; after an error it is gone.

    Raises OSError.
    """
    refuse_special(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
        sync_directory(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Put the bytes of a file on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def free_bytes(directory: Path) -> int:
    """Return how much this process may still write to the file system of ``directory``."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def own_bytes(directory: Path) -> int:
    """Return how much room comes free when a folder is removed: files with other names beside stay. 0 without one."""
    found = (path.lstat() for path in directory.rglob("*") if not path.is_dir())
    return sum(status.st_blocks * 512 for status in found if status.st_nlink == 1)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one atomic step (renameat2(2) RENAME_EXCHANGE).

    Raises OSError, with EINVAL or ENOSYS when the file system or the kernel cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = library.renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "the C library has no renameat2") from error
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def remove(path: Path) -> None:
    """Delete a file, a link or a whole directory; what cannot go is logged and left for the next sweep."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)


def drop(directory: Path) -> None:
    """Remove a directory, which loses its name first: half of it must never pass for a whole one. Raises OSError."""
    gone = directory.with_name(f"{REMOVED}{secrets.token_hex(8)}")
    directory.rename(gone)
    sync_directory(directory.parent)
    remove(gone)


@contextmanager
def work_folder(parent: Path, beginning: str) -> Iterator[Path]:
    """Give an empty folder, for its owner only, whose name has this beginning; it is removed at the end.

    Only one piece of work of a kind is done at a time, so other folders of that beginning are leftovers, and go.
    """
    for left in parent.glob(f"{beginning}*"):
        remove(left)
    folder = parent / f"{beginning}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def second_name(source: str, target: str) -> None:
    """Give the file ``source`` a second name; where that cannot be, a copy that is on disk."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
        sync_file(Path(target))


def copy_by_names(directory: Path, target: Path) -> None:
    """Make ``target`` a copy of a folder, by second names of its files; on disk when this returns.

    For what is never written in place. ``directory`` may be a link to the folder.
    """
    shutil.copytree(directory.resolve(), target, copy_function=second_name)
    for folder, _, _ in os.walk(target):
        sync_directory(Path(folder))


def replace(new: Path, target: Path, aside: Path) -> None:
    """Put the directory ``new`` at ``target``; a crash at any instant leaves the old or the new one there.

    Where two names cannot be swapped in one step, the old one steps ``aside`` first; ``put_back``
    undoes that after a crash. All three are in one directory.
    """
    if not os.path.lexists(target):
        new.rename(target)
        sync_directory(target.parent)
        return
    try:
        exchange(new, target)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        replace_by_renames(new, target, aside)
    else:
        drop(new)


def replace_by_renames(new: Path, target: Path, aside: Path) -> None:
    """Put the directory ``new`` at ``target``, which is not there for an instant; ``new`` is never another one.

    After a crash ``put_back`` leaves both as they were, or ``new`` at ``target`` and the old one gone.
    """
    target.rename(aside)
    new.rename(target)
    sync_directory(target.parent)
    remove(aside)


def put_back(aside: Path, target: Path) -> None:
    """Finish a ``replace`` that was interrupted: the old directory returns if the new one never came."""
    if os.path.lexists(target):
        remove(aside)
    else:
        aside.rename(target)
        sync_directory(target.parent)
