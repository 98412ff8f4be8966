"""What the service manager hands over in the environment: listening sockets, its address, the watchdog's time.

The protocols of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). The variables are taken out of the
environment: no program that this one starts may speak in its name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from appliance.service.errors import ServiceError

FIRST_DESCRIPTOR = 3
MOST_LISTENERS = 16
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(frozen=True)
class Handover:
    """``notify_address`` None when no service manager listens; ``watchdog_seconds`` None when none watches."""

    notify_address: str | None = None
    watchdog_seconds: float | None = None
    listeners: tuple[socket.socket, ...] = ()


def take_over(environment: MutableMapping[str, str] | None = None) -> Handover:
    """Take what was handed over to this process; call it once, before other descriptors are opened.

    Raises ServiceError when a socket among it is no listening TCP socket.
    """
    environment = os.environ if environment is None else environment
    given = {name: environment.pop(name, "") for name in _VARIABLES}
    watchdog = _whole(given["WATCHDOG_USEC"]) if _is_ours(given["WATCHDOG_PID"], otherwise=True) else 0
    count = _whole(given["LISTEN_FDS"]) if _is_ours(given["LISTEN_PID"], otherwise=False) else 0
    if count > MOST_LISTENERS:
        raise ServiceError(f"the service manager handed over {count} sockets, more than {MOST_LISTENERS}")
    return Handover(
        notify_address=given["NOTIFY_SOCKET"] or None,
        watchdog_seconds=watchdog / 1e6 if watchdog else None,
        listeners=tuple(_listener(FIRST_DESCRIPTOR + index) for index in range(count)),
    )


def _is_ours(process: str, *, otherwise: bool) -> bool:
    """Tell whether a variable is meant for this process: children inherit the environment of others."""
    return process == str(os.getpid()) if process else otherwise


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _listener(descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        # Workers and other programs must not hold the port.
        listener.set_inheritable(False)
        tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
        listening = tcp and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ServiceError(
            f"the service manager handed over descriptor {descriptor}, which cannot be used: {error.strerror}"
        ) from error
    if not listening:
        listener.detach()
        raise ServiceError(
            f"the service manager handed over descriptor {descriptor}, which is no listening TCP socket"
        )
    return listener
