"""Where the service listens: on sockets that it inherits, else on one that it binds."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence

from appliance.config import Settings
from appliance.service.errors import ServiceError

log = logging.getLogger(__name__)

BACKLOG = 1024


def listeners_of(settings: Settings, inherited: Sequence[socket.socket]) -> list[socket.socket]:
    """Return the sockets to serve on. An inherited one stays open when this program ends.

    Raises ServiceError when the port is not free, or when HTTP would be served in the clear beyond loopback.
    """
    if inherited:
        ports = sorted({listener.getsockname()[1] for listener in inherited})
        if settings.port not in ports:
            shown = ", ".join(map(str, ports))
            log.warning(
                "the service manager listens on port %s; port = %d does nothing", shown, settings.port
            )
    listeners = list(inherited) or [_bound(settings)]
    try:
        require_secrecy(settings, listeners)
    except ServiceError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def require_secrecy(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Refuse plain HTTP where others could read keys and prompts. Raises ServiceError."""
    if settings.tls != "off" or settings.allow_plain_http:
        return
    for listener in listeners:
        host = listener.getsockname()[0]
        if not is_loopback(host):
            raise ServiceError(
                f"{host} is not this machine alone, and plain HTTP there would show keys and prompts to the "
                'network. Set tls = "auto" (or "files"); or allow_plain_http = true where that is meant.'
            )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def own_address(listener: socket.socket) -> tuple[str, int]:
    """Return where this machine itself reaches a listener."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        # A listener on [::] may be for IPv6 alone.
        host = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return host, port


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Is the service running already? Another port: --port or APPLIANCE_PORT."
        ) from error
    return listener
