"""What a box is called and where it is reached: the names and addresses that its certificate is for."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from appliance.tls.errors import TlsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SIOCGIFCONF = 0x8912
_MOST_INTERFACES = 256
_INTERFACE_BYTES = 40
_IPV6_TABLE = Path("/proc/net/if_inet6")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


class Names(msgspec.Struct, frozen=True):
    """DNS names in lower case, and addresses; both sorted."""

    dns: tuple[str, ...]
    addresses: tuple[Address, ...]


def names_of_box(further: Iterable[str]) -> Names:
    """Return loopback, the host's name (also with ``.local``), its addresses, and the ``further`` ones.

    Nothing is looked up. Raises TlsError for a further name that is none.
    """
    dns, addresses = {"localhost"}, {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")}
    host = socket.gethostname().lower().rstrip(".")
    if is_dns_name(host):
        dns |= {host} if "." in host else {host, f"{host}.local"}
    addresses |= set(own_addresses())
    for name in further:
        plain = name.strip().lower().rstrip(".")
        try:
            addresses.add(ipaddress.ip_address(plain))
        except ValueError:
            if not is_dns_name(plain.removeprefix("*.")):
                raise TlsError(f"tls_names: {name!r} is neither a name nor an address") from None
            dns.add(plain)
    return Names(tuple(sorted(dns)), tuple(sorted(addresses, key=lambda each: (each.version, each))))


def is_dns_name(text: str) -> bool:
    """Tell whether a certificate can be for a name (lower case)."""
    return 0 < len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.split("."))


def own_addresses() -> list[Address]:
    """Return the addresses of this machine's interfaces, those of one link alone left out.

    Asked of the kernel by ioctl and /proc: the service may open no netlink socket.
    """
    found: list[Address] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        found += _ipv4_addresses(control)
    with contextlib.suppress(OSError):
        for line in _IPV6_TABLE.read_text("ascii", "replace").splitlines():
            with contextlib.suppress(ValueError, IndexError):
                found.append(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))
    return [address for address in found if not address.is_link_local]


def _ipv4_addresses(control: socket.socket) -> list[Address]:
    import array

    buffer = array.array("B", bytes(_MOST_INTERFACES * _INTERFACE_BYTES))
    place, _ = buffer.buffer_info()
    answer = fcntl.ioctl(control, _SIOCGIFCONF, struct.pack("iP", len(buffer), place))
    used: int = struct.unpack("iP", answer)[0]
    content = buffer.tobytes()[:used]
    # struct ifreq: the name (16 bytes), then a sockaddr_in, whose address is at its fifth byte.
    return [
        ipaddress.IPv4Address(content[start + 20 : start + 24])
        for start in range(0, used, _INTERFACE_BYTES)
        if struct.unpack_from("H", content, start + 16)[0] == socket.AF_INET
    ]
