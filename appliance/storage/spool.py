"""Uploads on their way to a worker: on disk, without a name, gone when the last holder closes them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from appliance.storage.errors import StoreFullError

# Uploads must not fill the disk that the stores write to.
RESERVED_BYTES = 256 << 20


class Spool:
    """The folder for uploads. Opening it empties it: what a crash left is nobody's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in directory.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        # The multipart parser puts what exceeds its memory limit here.
        tempfile.tempdir = str(directory)

    def check_room(self, size: int) -> None:
        """Raise StoreFullError when ``size`` bytes would leave too little free space."""
        if shutil.disk_usage(self.directory).free < size + RESERVED_BYTES:
            raise StoreFullError("There is not enough disk space for this upload.", retry_after=60)

    @contextmanager
    def hand_over(self, upload: IO[bytes]) -> Iterator[int]:
        """Give an uploaded file to a worker as a descriptor, positioned at its start.

        ``upload`` is the parser's temporary file; one still in memory is written to disk first.
        """
        rollover = getattr(upload, "rollover", None)
        if rollover is not None:
            rollover()
        upload.flush()
        descriptor = os.dup(upload.fileno())
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield descriptor
        finally:
            os.close(descriptor)
