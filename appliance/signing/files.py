"""Files of unknown origin, read with bounds."""

from __future__ import annotations

import os
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
