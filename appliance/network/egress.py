"""The only way out: one HTTP client that reaches what the configuration allows, and nothing else.

A name is resolved once, every address it has must be allowed, and the connection goes to the
address that was checked. Redirects are for the caller to refuse (``FOLLOW_NO_REDIRECT``); proxies and passwords
of the environment are not used, cookies not kept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.disk import read_beginning
from appliance.errors import ApplianceError
from appliance.network.connections import Connector

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 10.0
READ_SECONDS = 300.0
# Threads of their own for looking names up: those of a resolver that is silent must not keep others from work.
LOOK_UPS = 8
# Shorter than what servers keep (uvicorn: 5 s): a connection must not be used when it is being closed.
KEEP_ALIVE_SECONDS = 4.0

# Where clouds serve credentials to whoever asks; most are link-local, these are not.
METADATA: frozenset[Address] = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
# IPv6 addresses that a gateway turns into the IPv4 address in their last 32 bits: NAT64, SIIT, and the oldest form.
CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")))


class EgressError(ApplianceError):
    """The egress policy forbids this call."""

    status = 403
    type = "permission_error"


class EgressPolicy:
    """Which addresses may be reached: those in ``networks``, loopback only where they say so, and some never.

    ``authorities`` (a PEM file) are trusted for TLS beside the system's.
    """

    def __init__(self, networks: Iterable[str], authorities: Path | None = None) -> None:
        """Take networks as CIDR text. Raises EgressError for a text that is none."""
        self.authorities = authorities
        try:
            self.networks: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in networks)
        except ValueError as error:
            raise EgressError(f"egress_networks: {error}", status=500) from error

    def allows(self, address: Address) -> bool:
        """Tell whether an address may be connected to; for one that carries another, whether both may."""
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            return self.allows(mapped)  # the same address, written for IPv6 sockets
        return all(self._lists(each) for each in (address, *_carried(address)))

    def _lists(self, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address):
            address = ipaddress.IPv6Address(int(address))  # addresses of different zones are not equal
        if address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA:
            return False
        return any(
            address.version == network.version
            and address in network
            # "Every network" does not mean this machine itself.
            and (network.is_loopback or not address.is_loopback)
            for network in self.networks
        )

    async def resolve(self, host: str, port: int) -> str:
        """Return the address to connect to. Raises EgressError when any address of the host is refused."""
        try:
            found = [ipaddress.ip_address(host.strip("[]"))]
        except ValueError:
            if not self.networks:
                raise EgressError(
                    f"Calls to {host} are not allowed: no egress network is configured."
                ) from None
            try:
                answers = await asyncio.get_running_loop().run_in_executor(_look_ups, _looked_up, host, port)
            except socket.gaierror as error:
                raise EgressError(f"{host} cannot be resolved: {error.strerror}", status=503) from error
            except UnicodeError:  # an empty label, or one of more than 63 characters
                raise EgressError(f"{host} is not the name of a host.", status=503) from None
            found = [ipaddress.ip_address(answer[4][0]) for answer in answers]
        for address in found:
            self.require(address, host)
        return str(found[0])

    def require(self, address: Address, host: str) -> None:
        """Raise EgressError unless an address of ``host`` may be connected to."""
        if not self.allows(address):
            raise EgressError(f"Calls to {host} ({address}) are not allowed by the egress policy.")


_look_ups = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="look-up")


def _looked_up(host: str, port: int) -> list[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _carried(address: Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that packets to an IPv6 address may end at: 6to4, Teredo, NAT64 and SIIT forms."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [] if address.sixtofour is None else [address.sixtofour]
    found += address.teredo or ()
    if any(address in network for network in CARRIERS) and not (
        address.is_loopback or address.is_unspecified
    ):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return found


class _CheckedResolver(AbstractResolver):
    """Looks names up by way of the policy; TLS still verifies the host name that was asked for."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the checked address of ``host``. Raises EgressError."""
        address = await self._policy.resolve(host, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Reuse:
    """Whether a call went over a connection that was kept from another one.

    It goes with the call as its ``trace_request_ctx``.
    """

    __slots__ = ("happened",)

    def __init__(self) -> None:
        self.happened = False


async def _reused(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceConnectionReuseconnParams) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.happened = True


def egress_client(policy: EgressPolicy, *, max_connections: int = 100) -> aiohttp.ClientSession:
    """Make the client for every outbound call of the service, on the running loop; close it at shutdown.

    Answers come as they are sent: nothing is decompressed. Raises EgressError for a file of authorities that is none.
    """

    def checked_socket(info: tuple[Any, ...]) -> socket.socket:
        # The resolver is not asked about hosts that are addresses: every connection comes by here.
        family, kind, protocol, _, (address, *_) = info
        policy.require(ipaddress.ip_address(address), address)
        return socket.socket(family, kind, protocol)

    context = ssl.create_default_context()
    if policy.authorities is not None:
        try:
            # Refuses a pipe that nobody writes to, which OpenSSL would wait for.
            read_beginning(policy.authorities, 1)
            context.load_verify_locations(policy.authorities)
        except OSError as error:  # ssl.SSLError is one
            raise EgressError(f"trusted_authorities: {policy.authorities}: {error}", status=500) from error
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_reused)
    return aiohttp.ClientSession(
        connector=Connector(
            limit=max_connections,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            use_dns_cache=False,
            resolver=_CheckedResolver(policy),
            socket_factory=checked_socket,
            ssl=context,
        ),
        headers={"Accept-Encoding": "identity", "User-Agent": "appliance"},
        skip_auto_headers=("Content-Type",),
        auto_decompress=False,
        # What a server says to remember would go with the next user's request.
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[trace],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
    )
