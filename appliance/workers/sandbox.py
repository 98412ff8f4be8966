"""Confine the worker process it is called in: limits, no new privileges, no life after the parent."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal

from appliance.workers.errors import SandboxError
from appliance.workers.protocol import Limits
from appliance.workers.seccomp import install_filter

logger = logging.getLogger(__name__)

# linux/prctl.h
_SET_PARENT_DEATH_SIGNAL = 1
_SET_NO_NEW_PRIVILEGES = 38


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise SandboxError(f"prctl {option} failed: {os.strerror(ctypes.get_errno())}")


def die_with_parent() -> None:
    """Have the kernel kill this process when the service ends, however it ends.

    The service may be gone already; the closed socket pair tells that.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


# Where libffi keeps the code of callbacks (ctypes), it is mapped with the first of them. Under a service manager that
# forbids memory which is writable and executable, that takes a file in memory, and a confined worker may write none.
_CALLBACK = ctypes.CFUNCTYPE(None)
_callbacks: list[object] = []


def confine(limits: Limits) -> None:
    """Apply ``limits``, give up new privileges, and install the system-call filter.

    Raises SandboxError when one of them cannot be applied.
    """
    _callbacks.append(_CALLBACK(lambda: None))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, limits.address_space)
    _limit(resource.RLIMIT_FSIZE, limits.file_size)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    try:
        install_filter()
    except SandboxError as error:
        if limits.system_call_filter:
            raise
        logger.warning("this worker runs without a system-call filter: %s", error)


def _limit(kind: int, value: int) -> None:
    _, highest = resource.getrlimit(kind)
    if highest != resource.RLIM_INFINITY:
        value = min(value, highest)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError) as error:
        raise SandboxError(f"resource limit {kind} cannot be set to {value}: {error}") from error
