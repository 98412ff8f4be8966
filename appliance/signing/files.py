"""Files of unknown origin, read with bounds; files of ours, written so that they are whole or not there."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from appliance.signing.errors import Reason, SigningError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without buffer. Raises SigningError for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SigningError("damaged", f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SigningError("damaged", f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_small(path: Path, limit: int, reason: Reason, what: str) -> bytes:
    """Return the bytes of a file of at most ``limit`` bytes. Raises SigningError; ``what`` names its kind."""
    try:
        with open_regular(path) as file, os.fdopen(os.dup(file.fileno()), "rb") as buffered:
            data = buffered.read(limit + 1)
    except SigningError as error:
        raise SigningError(reason, error.message) from error
    except OSError as error:
        raise SigningError(reason, f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise SigningError(reason, f"{path} is larger than {what} ever is ({limit} bytes)")
    return data


def write_whole(path: Path, data: bytes, mode: int, *, replace: bool = True) -> None:
    """Write a file so that after a crash at any instant it is there whole, as before, or not at all.

    When root writes into another user's folder, the file becomes that user's. Raises OSError;
    FileExistsError when ``replace`` is false and there is one.
    """
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
