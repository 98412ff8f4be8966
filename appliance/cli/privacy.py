"""Keeps the service's memory, where keys and prompts are, from other processes of its user."""

from __future__ import annotations

import ctypes
import logging
import os

log = logging.getLogger(__name__)

PR_SET_DUMPABLE = 4


def hide_memory() -> None:
    """Make this process undumpable: no core files, and /proc/PID/mem is closed to its own user.

    Root still reads it; a hijacked worker that runs as the service's user does not.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("the process stays dumpable: %s", os.strerror(ctypes.get_errno()))
