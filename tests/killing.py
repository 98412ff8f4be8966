"""Dying by SIGKILL right before a step that changes or reads what is on disk, for tests of what is left."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

STEPS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.chmod",
    "os.chown",
    "os.listdir",
    "os.scandir",
    "fsync",
    "exchange",
}


def die_before(step: int) -> None:
    """Kill this process right before it takes the given step (counted from 0)."""
    taken = itertools.count()

    def hook(event: str, _arguments: object) -> None:
        if event in STEPS and next(taken) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def announce_fsync() -> None:
    """Make a step of it: it has no audit event of its own."""
    fsync = os.fsync

    def audited_fsync(fd: Any) -> None:
        sys.audit("fsync")
        fsync(fd)

    os.fsync = audited_fsync
