"""The lock that makes changes of a pack store take turns, across threads and processes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.packs.meter import Meter

# How often a waiting change asks again: often enough to be cancelled, seldom enough to cost nothing.
POLL_SECONDS = 0.1


@contextmanager
def hold(path: Path, meter: Meter) -> Iterator[None]:
    """Wait for the lock file ``path`` and hold it; the kernel lets it go when the process dies.

    Raises PackCancelledError when ``meter`` was cancelled meanwhile.
    """
    with _opened(path) as descriptor:
        while not _take(descriptor):
            meter.check()
            time.sleep(POLL_SECONDS)
        yield


@contextmanager
def hold_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` if nobody else does; yields whether it is held."""
    with _opened(path) as descriptor:
        yield _take(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
