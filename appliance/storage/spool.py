"""Uploads on their way to a worker: on disk, without a name, gone when the last holder closes them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.disk import remove
from appliance.storage.errors import StoreFullError

# Uploads must not fill the disk that the stores write to.
RESERVED_BYTES = 256 << 20

_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(directory: Path) -> int:
    """Return the free space of the file system that holds ``directory``, in bytes."""
    return shutil.disk_usage(directory).free


class Spool:
    """The folder for uploads. Opening it empties it: what a crash left is nobody's.

    ``free`` tells the free bytes of the folder's file system.
    """

    def __init__(self, directory: Path, free: Callable[[Path], int] = free_bytes) -> None:
        self.directory = directory
        self._free = free
        self._lock = threading.Lock()
        # Bytes of writes that are allowed but may not show in the file system's figure yet.
        self._promised = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in directory.iterdir():
            remove(left)

    def check_room(self, size: int) -> None:
        """Raise StoreFullError when ``size`` bytes would leave too little free space now.

        Nothing is set aside for them: an announced size costs a client nothing, so it must not shut
        out the others. What counts is asked again at every write.
        """
        with self._lock:
            self._require(size)

    @contextmanager
    def promise(self, size: int) -> Iterator[None]:
        """Set ``size`` bytes aside while they are being written. Raises StoreFullError.

        An OSError inside that means a full disk becomes a StoreFullError too.
        """
        with self._lock:
            self._require(size)
            self._promised += size
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise _full() from error
            raise
        finally:
            with self._lock:
                self._promised -= size

    def upload(self) -> Upload:
        """Return a new empty upload. Raises StoreFullError."""
        with self.promise(0):
            return Upload(self)

    def _require(self, size: int) -> None:
        if self._free(self.directory) < self._promised + size + RESERVED_BYTES:
            raise _full()


class Upload:
    """One upload: a file without a name. Its methods may be called from any thread."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        # No buffer: closing then writes nothing, and cannot fail for want of space.
        self._file = tempfile.TemporaryFile(dir=spool.directory, buffering=0)  # noqa: SIM115 - this object is one
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append ``data``. Raises StoreFullError; ValueError when the upload is closed."""
        view = memoryview(data)
        # A close meanwhile waits: the descriptor's number could be another file's by then.
        with self._lock, self._spool.promise(len(data)):
            while view:
                written = self._file.write(view)
                view = view[written:]
                self.size += written

    def descriptor(self) -> int:
        """Return the file's descriptor, positioned at its start; it is this object's to close."""
        with self._lock:
            descriptor = self._file.fileno()
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

    def close(self) -> None:
        """Give up the file; the space is free once nobody else holds its descriptor."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _full() -> StoreFullError:
    return StoreFullError("There is not enough disk space for this upload.", retry_after=60)
