"""The only way out: one HTTP client that reaches what the configuration allows, and nothing else.

A name is resolved once, every address it has must be allowed, and the connection goes to the
address that was checked. Redirects are not followed; proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpcore
import httpx

from appliance.errors import ApplianceError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 10.0
READ_SECONDS = 300.0
# Shorter than what servers keep (uvicorn: 5 s): a connection must not be used when it is being closed.
KEEP_ALIVE_SECONDS = 4.0

# Where clouds serve credentials to whoever asks; most are link-local, these are not.
METADATA: frozenset[Address] = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
# IPv6 addresses that a gateway turns into the IPv4 address in their last 32 bits: NAT64, and the oldest form.
CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))


class EgressError(ApplianceError):
    """The egress policy forbids this call."""

    status = 403
    type = "permission_error"


class EgressPolicy:
    """Which addresses may be reached: those in ``networks``, loopback only where they say so, and some never."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Take networks as CIDR text. Raises EgressError for a text that is none."""
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
            loop = asyncio.get_running_loop()
            try:
                answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except socket.gaierror as error:
                raise EgressError(f"{host} cannot be resolved: {error.strerror}", status=503) from error
            except UnicodeError:  # an empty label, or one of more than 63 characters
                raise EgressError(f"{host} is not the name of a host.", status=503) from None
            found = [ipaddress.ip_address(answer[4][0]) for answer in answers]
        for address in found:
            if not self.allows(address):
                raise EgressError(f"Calls to {host} ({address}) are not allowed by the egress policy.")
        return str(found[0])


def _carried(address: Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that packets to an IPv6 address may end at: 6to4, Teredo and NAT64 forms."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [] if address.sixtofour is None else [address.sixtofour]
    found += address.teredo or ()
    if any(address in network for network in CARRIERS) and not (
        address.is_loopback or address.is_unspecified
    ):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return found


class _CheckedBackend(httpcore.AnyIOBackend):
    """Connects by way of the policy; TLS still verifies the host name that was asked for."""

    def __init__(self, policy: EgressPolicy) -> None:
        super().__init__()
        self._policy = policy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the checked address of ``host``. Raises EgressError."""
        address = await self._policy.resolve(host, port)
        return await super().connect_tcp(address, port, timeout, local_address, socket_options)


def egress_client(policy: EgressPolicy, *, max_connections: int = 100) -> httpx.AsyncClient:
    """Make the client for every outbound call of the service; close it at shutdown."""
    transport = httpx.AsyncHTTPTransport(trust_env=False)
    pool = httpcore.AsyncConnectionPool(
        ssl_context=httpx.create_ssl_context(trust_env=False),
        max_connections=max_connections,
        keepalive_expiry=KEEP_ALIVE_SECONDS,
        network_backend=_CheckedBackend(policy),
    )
    transport._pool = pool  # noqa: SLF001 - httpx has no public way to pass a network backend
    return httpx.AsyncClient(
        transport=transport,
        # What a server says to remember would go with the next user's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
    )
