"""The address that a request came from: that of the connection, or what a trusted proxy says it was.

Everything that names or counts clients asks here: waits after failed logins, the audit log, refused keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from litestar.connection import ASGIConnection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HEADER = "x-forwarded-for"
# Proxies that stand behind each other at most; what is left of them in the header is never looked at.
MOST_PROXIES = 16
# The longest way to write one: [, 45 of an IPv6 address, %, a zone, ], and a port.
LONGEST_ENTRY = 80
# How an IPv4 address begins that is written as an IPv6 one.
MAPPED = "::ffff:"
# Where there is no address, such as on a Unix socket.
LOCAL = "local"

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?")
_WITH_PORT = re.compile(r"([0-9.]+):([0-9]{1,5})")
_MOST_PORT = 65535


class TrustedProxies:
    """The networks of the proxies that are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Take networks as CIDR text. Raises ValueError for a text that is none."""
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in networks)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the client of a request whose connection comes from ``peer``.

        ``forwarded`` are its X-Forwarded-For headers in their order. Each proxy appends the address that it was
        spoken to from: so from the right the first address that is no trusted proxy is the client, and what stands
        left of it is the client's own invention. The peer itself is returned when it is not trusted, and when no
        client can be told: an entry that is no address comes first, or more than ``MOST_PROXIES`` are trusted.
        """
        if peer.startswith(MAPPED):
            # A socket for both families, as systemd makes it, writes IPv4 addresses so.
            peer = str(parsed(peer) or peer)
        if not self._networks or not self._trusts(parsed(peer)):
            return peer
        for entry in reversed(",".join(forwarded).rsplit(",", MOST_PROXIES)[-MOST_PROXIES:]):
            address = parsed(entry)
            if address is None:
                return peer
            if not self._trusts(address):
                return str(address)
        return peer

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def parsed(entry: str) -> Address | None:
    """Return the address in an entry, which may have brackets, a port and a zone; None when it is none.

    An IPv4 address that is written as an IPv6 one is the IPv4 address.
    """
    text = entry.strip(" \t")
    if len(text) > LONGEST_ENTRY:
        return None
    bracketed = _BRACKETED.fullmatch(text)
    found = bracketed or _WITH_PORT.fullmatch(text)
    if found is not None:
        text = found[1]
        if int(found[2] or 0) > _MOST_PORT:
            return None
    try:
        # The zone is the proxy's own name of its interface; in brackets stands IPv6 alone.
        address = ipaddress.IPv6Address(text.partition("%")[0]) if ":" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return None if bracketed else address
    return address.ipv4_mapped or address


@lru_cache(maxsize=8)
def _proxies(networks: tuple[str, ...]) -> TrustedProxies:
    return TrustedProxies(networks)


def source_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Return the address that the request came from."""
    if connection.client is None:
        return LOCAL
    proxies = _proxies(connection.app.state.settings.trusted_proxies)
    return proxies.client(connection.client.host, connection.headers.getall(HEADER, []))
