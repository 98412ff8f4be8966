"""Kept connections: what a server says though nobody asked is no request's answer, whenever it comes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from appliance.network.egress import EgressPolicy, egress_client
from appliance.tls.authority import make_authority
from appliance.tls.names import Names

LOOPBACK = EgressPolicy(["127.0.0.0/8"])
LONG = 30

Serve = Callable[[socket.socket], None]


def answer(text: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def asked(connection: socket.socket) -> str:
    """Read a request with a small body; return the body, "" at the connection's end."""
    got = b""
    while b"\r\n\r\n" not in got:
        if not (piece := connection.recv(1 << 16)):
            return ""
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    size = next(int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < size:
        body += connection.recv(1 << 16)
    return body.decode()


@contextmanager
def server(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve every connection by ``serve``, in a thread of its own; yield the URL."""

    def run(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):  # the client hangs up on some
            serve(connection if tls is None else tls.wrap_socket(connection, server_side=True))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=run, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)


async def ask(client: aiohttp.ClientSession, url: str, text: str) -> str:
    async with client.post(url, data=text.encode()) as response:
        return await response.text()


def _authority(folder: Path) -> tuple[ssl.SSLContext, EgressPolicy]:
    """Return what a server over TLS needs, and the policy of a client that trusts it."""
    names = Names((), (ipaddress.ip_address("127.0.0.1"),))
    made = make_authority(folder / "authority.pem", names)
    chain, trusted = folder / "chain.pem", folder / "trusted.pem"
    chain.write_bytes(made.issue(names))
    trusted.write_bytes(made.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, EgressPolicy(["127.0.0.0/8"], trusted)


@pytest.mark.parametrize("secure", [False, True])
async def test_what_lies_unread_on_a_kept_connection_is_not_the_next_requests_answer(
    tmp_path: Path, secure: bool
) -> None:
    """A busy event loop may take the connection again before it reads on."""
    asked_for_more, said_more = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        while text := asked(connection):
            connection.sendall(answer(f"for {text}"))
            if text == "the first":
                assert asked_for_more.wait(LONG)
                connection.sendall(answer("for another"))
                said_more.set()

    tls, policy = (None, LOOPBACK) if not secure else _authority(tmp_path)
    with server(serve, tls) as url:
        async with egress_client(policy) as client:
            assert await ask(client, url, "the first") == "for the first"
            asked_for_more.set()
            assert said_more.wait(LONG)  # the event loop stands still meanwhile
            assert await ask(client, url, "the second") == "for the second"


async def test_a_connection_on_which_a_server_calls_the_request_late_is_not_kept() -> None:
    """Some say so of a silence before it, and answer the request all the same: to whoever asks next."""
    served: list[list[str]] = []

    def serve(connection: socket.socket) -> None:
        served.append([])
        while text := asked(connection):
            served[-1].append(text)
            connection.sendall(answer("", "408 Request Timeout") if text == "the second" else answer(text))

    with server(serve) as url:
        async with egress_client(LOOPBACK) as client:
            answers = [await ask(client, url, text) for text in ("the first", "the second", "the third")]
    assert answers == ["the first", "", "the third"]
    assert served == [["the first", "the second"], ["the third"]]


async def test_a_connection_whose_server_answers_before_it_has_the_request_is_not_kept() -> None:
    """What is left of the request would be read as the next one."""
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(answer("early"))
        served.append(b"")
        while piece := connection.recv(1 << 16):
            served[-1] = (served[-1] + piece)[-9:]

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 16)
        await gone.wait()  # like a disk that is slow
        yield b"the rest."

    gone = asyncio.Event()
    with server(serve) as url:
        async with egress_client(LOOPBACK) as client:
            for _ in range(2):
                async with client.post(url, data=pieces()) as response:
                    assert await response.text() == "early"
            gone.set()
    assert len(served) == 2
    assert b"the rest." not in served
