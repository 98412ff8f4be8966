"""The way out: only to allowed networks, never by a second look-up, never after a redirect."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.network.download import DownloadCancelledError, download
from appliance.network.egress import EgressError, EgressPolicy, egress_client
from appliance.tls.authority import make_authority
from appliance.tls.names import Names

CONTENT = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/cookie":
            answer = str(self.headers["Cookie"]).encode()
            self.send_header("Set-Cookie", "session=another user's")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            return
        length = len(CONTENT) + (10 if self.path == "/short" else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


LOOPBACK = EgressPolicy(["127.0.0.0/8"])


def nothing(_done: int, _total: int) -> None:
    """Take progress and drop it."""


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ([], "10.0.0.1", False),
        (["10.0.0.0/8"], "10.0.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["10.0.0.0/8"], "::ffff:169.254.169.254", False),
        (["0.0.0.0/0"], "169.254.169.254", False),
        (["0.0.0.0/0"], "0.0.0.0", False),
        (["0.0.0.0/0", "::/0"], "fe80::1", False),
        (["fd00::/8"], "fd00::1", True),
        (["0.0.0.0/0", "::/0"], "127.0.0.1", False),
        (["0.0.0.0/0", "::/0"], "::1", False),
        (["0.0.0.0/0", "::/0"], "::ffff:127.0.0.1", False),
        (["127.0.0.1/32"], "127.0.0.1", True),
        (["127.0.0.1/32"], "127.0.0.2", False),
        (["::1/128"], "::1", True),
        (["0.0.0.0/0"], "224.0.0.1", False),
        (["::/0"], "ff02::1", False),
        (["fc00::/7"], "fd00:ec2::254", False),
        (["0.0.0.0/0"], "100.100.100.200", False),
        # A zone names an interface: the address is the same.
        (["fc00::/7"], "fd00:ec2::254%eth0", False),
        (["fc00::/7"], "fd00::1%eth0", True),
        # NAT64, SIIT, 6to4, Teredo and the oldest form carry an IPv4 address, which must be allowed too.
        (["0.0.0.0/0", "::/0"], "64:ff9b::a9fe:a9fe", False),
        (["0.0.0.0/0", "::/0"], "64:ff9b::7f00:1", False),
        (["::/0"], "64:ff9b::8.8.8.8", False),
        (["0.0.0.0/0", "::/0"], "64:ff9b::8.8.8.8", True),
        (["0.0.0.0/0", "::/0"], "::ffff:0:169.254.169.254", False),
        (["0.0.0.0/0", "::/0"], "::ffff:0:127.0.0.1", False),
        (["0.0.0.0/0", "::/0"], "::ffff:0:8.8.8.8", True),
        (["0.0.0.0/0", "::/0"], "2002:a9fe:a9fe::1", False),
        (["0.0.0.0/0", "::/0"], "2002:808:808::1", True),
        (["0.0.0.0/0", "::/0"], "::169.254.169.254", False),
        (["0.0.0.0/0", "::/0"], "2001:0:808:808::5601:5601", False),
    ],
)
def test_only_listed_networks_and_never_link_local(networks: list[str], address: str, allowed: bool) -> None:
    assert EgressPolicy(networks).allows(ipaddress.ip_address(address)) is allowed


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(EgressError, match="egress_networks"):
        EgressPolicy(["10.0.0.0/33"])


async def test_without_networks_not_even_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with egress_client(EgressPolicy([])) as client:
        with pytest.raises(EgressError, match="no egress network"):
            await client.get("http://files.example/")


async def test_the_checked_address_is_the_one_connected_to(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]])
    # A second look-up would raise StopIteration: an attacker's server would answer it differently.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(answers))
    async with egress_client(LOOPBACK) as client:
        response = await client.get(f"http://files.example:{port}/file")
        assert await response.read() == CONTENT


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"])
async def test_a_host_that_is_an_address_is_checked_when_it_is_connected_to(port: int, host: str) -> None:
    async with egress_client(EgressPolicy(["10.0.0.0/8", "0.0.0.0/0", "::/0"])) as client:
        with pytest.raises(EgressError, match="egress policy"):
            await client.get(f"http://{host}:{port}/file")


async def test_a_host_written_as_a_number_is_never_taken_for_an_address(port: int) -> None:
    async with egress_client(EgressPolicy(["10.0.0.0/8"])) as client:
        for host in ("2130706433", "127.1", "0x7f.0.0.1", "0177.0.0.1"):
            with pytest.raises((EgressError, aiohttp.ClientError)):
                await client.get(f"http://{host}:{port}/file")


async def test_what_a_server_says_to_remember_is_not_sent_again(port: int) -> None:
    async with egress_client(LOOPBACK) as client:
        for _ in range(2):
            async with client.get(f"http://127.0.0.1:{port}/cookie") as response:
                assert response.headers["Set-Cookie"]
                assert await response.read() == b"None"


async def test_an_authority_of_the_operators_is_trusted_and_no_other(tmp_path: Path) -> None:
    names = Names(("localhost",), (ipaddress.ip_address("127.0.0.1"),))
    authority = make_authority(tmp_path / "authority.pem", names)
    chain, trusted = tmp_path / "chain.pem", tmp_path / "trusted.pem"
    chain.write_bytes(authority.issue(names))
    trusted.write_bytes(authority.pem)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/file"
        async with egress_client(EgressPolicy(["127.0.0.1/32"], trusted)) as client:
            assert await (await client.get(url)).read() == CONTENT
        async with egress_client(LOOPBACK) as client:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.get(url)
        server.shutdown()


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_authorities_that_are_none_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EgressError, match="trusted_authorities"):
        egress_client(EgressPolicy([], path))


def test_a_host_with_one_forbidden_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("127.0.0.1", "169.254.169.254")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)

    with pytest.raises(EgressError, match=r"169\.254"):
        download(LOOPBACK, "http://files.example/", tmp_path / "f", nothing, never)


def test_a_file_is_fetched_with_progress(port: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    download(
        LOOPBACK, f"http://127.0.0.1:{port}/file", tmp_path / "f", lambda d, t: seen.append((d, t)), never
    )

    assert (tmp_path / "f").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("path", ["redirect", "short"])
def test_redirects_and_short_answers_are_refused(port: int, tmp_path: Path, path: str) -> None:
    with pytest.raises(EgressError):
        download(LOOPBACK, f"http://127.0.0.1:{port}/{path}", tmp_path / "f", nothing, never)


def test_a_download_can_be_cancelled(port: int, tmp_path: Path) -> None:
    with pytest.raises(DownloadCancelledError):
        download(LOOPBACK, f"http://127.0.0.1:{port}/file", tmp_path / "f", nothing, lambda: True)
