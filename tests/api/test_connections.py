"""Before anybody is known: heads have a deadline and a size, and silence locks nobody out."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from appliance.api.connection import ConnectionLimits, limited_connection, peer_group

# Only an upper bound: what does not happen within it fails.
LONG = 30
NEVER = 3600.0
# Long enough for what is to arrive before it.
QUICK = 0.25


class Box:
    """A server with the protocol and an application that echoes, or waits until it is let go."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.released = asyncio.Event()
        self.waiting = asyncio.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/refused":  # answers before the body has come
            await answer(send, 401, b"no")
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/wait":
            self.waiting.release()
            await self.released.wait()
        await answer(send, 200, b"%s %d" % (scope["raw_path"], len(body)))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


async def answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def box(maximum: int = 100, head_seconds: float = NEVER, keep_alive: int = 60) -> AsyncIterator[Box]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        box = Box(listener.getsockname()[1])
        limits = ConnectionLimits(maximum, head_seconds=head_seconds)
        config = uvicorn.Config(
            box,
            http=limited_connection(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(LONG):
                yield box
        finally:
            box.released.set()
            server.should_exit = True
            await serving


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return what still comes before the connection ends, also when it ends with a reset."""
    got = b""
    try:
        while piece := await reader.read(1 << 16):
            got += piece
    except ConnectionError:
        pass
    return got


def parsed(raw: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)


async def health(box: Box) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=LONG) as http:
        return (await http.get(f"{box.url}/health")).status_code


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"\r\n", b"GE"])
async def test_a_head_that_does_not_end_is_not_awaited(start: bytes) -> None:
    async with box(head_seconds=QUICK) as running:
        reader, writer = await running.connect()
        writer.write(start)
        assert await read_to_end(reader) == b""
        writer.close()


@pytest.mark.parametrize("drip", [b"a", b"\r\n"])
async def test_bytes_that_drip_do_not_move_the_deadline(drip: bytes) -> None:
    async with box(head_seconds=QUICK) as running:
        reader, writer = await running.connect()
        # A second request's head has the same deadline as the first.
        writer.write(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"/one 0")).startswith(b"HTTP/1.1 200")
        end = asyncio.create_task(read_to_end(reader))
        while not end.done():
            writer.write(drip)
            await asyncio.sleep(0)
        writer.close()


async def test_a_body_that_nobody_reads_is_not_awaited_for_ever() -> None:
    async with box(keep_alive=1) as running:
        reader, writer = await running.connect()
        writer.write(b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        await reader.readuntil(b"no")
        end = asyncio.create_task(read_to_end(reader))
        while not end.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()


@pytest.mark.parametrize(
    "start",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Endless: ",
        b"GET /health?",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Trailer: ",
    ],
    ids=["header", "url", "trailer"],
)
async def test_what_does_not_end_is_refused(start: bytes) -> None:
    async with box() as running:
        reader, writer = await running.connect()
        end = asyncio.create_task(read_to_end(reader))
        writer.write(start)
        sent = 0
        while not end.done() and sent < 64 << 20:
            writer.write(b"a" * 8192)
            sent += 8192
            try:
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0)
        assert sent < 64 << 20
        got = await end
        if b"Trailer" not in start:  # there, a request is running already
            status, headers, body = parsed(got)
            assert status == 431
            assert headers["connection"] == "close"
            assert headers["x-request-id"]
            assert body["error"]["type"] == "invalid_request_error"
        writer.close()
        assert await health(running) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 12_000 + b"\r\n",
        b"GET /health?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["header", "headers", "url"],
)
async def test_a_whole_head_beyond_the_limit_is_refused(head: bytes) -> None:
    async with box() as running:
        reader, writer = await running.connect()
        writer.write(head)
        assert parsed(await read_to_end(reader))[0] == 431
        writer.close()


async def test_bodies_of_any_size_and_pipelined_requests_pass() -> None:
    async with box() as running:
        reader, writer = await running.connect()
        size = 1_000_000
        post = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        chunked = b"POST /pieces HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b"4000\r\n" + b"y" * 0x4000 + b"\r\n0\r\nX-Trailer: 1\r\n\r\n"
        large = b"GET /large HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 50_000 + b"\r\n\r\n"
        last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        writer.write((post + large + chunked) * 3 + last)
        got = await read_to_end(reader)
        writer.close()
    assert got.count(b"200 OK") == 10
    assert got.count(b"/body 1000000") == got.count(b"/large 0") == got.count(b"/pieces 16384") == 3
    assert got.endswith(b"/last 0")


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        # What Java's client sends with its first request.
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    ],
    ids=["plain", "websocket", "h2c"],
)
async def test_a_request_for_another_protocol_is_served_with_its_body(asked: bytes, pause: float) -> None:
    """Its body was read as the next request: behind a proxy, its answer was another client's."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    async with box() as running:
        reader, writer = await running.connect()
        for framing, body in (
            (b"Content-Length: %d" % len(hidden), hidden),
            (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)),
            (b"X-Body: none", b""),
        ):
            writer.write(b"POST /asked HTTP/1.1\r\nHost: a\r\n" + asked + framing + b"\r\n\r\n")
            await asyncio.sleep(pause)  # a body that comes with its head, or later
            writer.write(body)
            await asyncio.sleep(pause)
        writer.write(b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        got = await read_to_end(reader)
        writer.close()
    assert got.count(b"/asked %d" % len(hidden)) == 2
    assert got.count(b"200 OK") == 4
    assert b"/hidden" not in got
    assert got.endswith(b"/last 0")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /asked HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
        b"POST /asked HTTP/1.1\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\n",
    ],
    ids=["HTTP/1.0", "close"],
)
async def test_a_last_request_that_asks_for_another_protocol_is_answered(head: bytes) -> None:
    async with box() as running:
        reader, writer = await running.connect()
        writer.write(head + b"Host: a\r\nContent-Length: 4\r\n\r\nbody")
        got = await read_to_end(reader)
        writer.close()
    assert got.endswith(b"/asked 4")


async def test_nothing_that_follows_a_request_for_a_tunnel_is_read() -> None:
    async with box() as running:
        reader, writer = await running.connect()
        writer.write(b"CONNECT /tunnel HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await read_to_end(reader)
        writer.close()
    assert parsed(got)[0] == 400
    assert b"/hidden" not in got


async def test_what_is_not_http_is_answered_in_json() -> None:
    async with box() as running:
        reader, writer = await running.connect()
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        status, headers, body = parsed(await read_to_end(reader))
        writer.close()
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert body["error"]["type"] == "invalid_request_error"


async def test_garbage_after_a_request_does_not_enter_its_answer() -> None:
    async with box() as running:
        reader, writer = await running.connect()
        writer.write(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await running.waiting.acquire()
        writer.write(b"\x00\x01\r\n\r\n")
        assert await read_to_end(reader) == b""
        writer.close()


async def test_silent_connections_lock_nobody_out() -> None:
    async with box(maximum=4) as running:
        silent = [await running.connect() for _ in range(40)]
        for _ in range(3):
            assert await health(running) == 200
        # The oldest have made room.
        assert await read_to_end(silent[0][0]) == b""
        for _, writer in silent:
            writer.close()


async def test_requests_beyond_the_limit_are_refused_and_health_answers() -> None:
    async with box(maximum=4) as running, httpx.AsyncClient(trust_env=False, timeout=LONG) as http:
        calls = [asyncio.create_task(http.get(f"{running.url}/wait")) for _ in range(4)]
        for _ in calls:
            await running.waiting.acquire()
        refused = await http.post(f"{running.url}/v1/x", content=b"x" * 100_000)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "server_error"
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["x-request-id"]
        assert await health(running) == 200
        # The silent ones do not end the running ones.
        silent = [await running.connect() for _ in range(20)]
        assert await health(running) == 200
        running.released.set()
        assert [(await call).status_code for call in calls] == [200] * 4
        assert (await http.get(f"{running.url}/again")).status_code == 200
        for _, writer in silent:
            writer.close()


async def test_a_running_request_outlives_the_deadline_of_a_pipelined_head() -> None:
    async with box(head_seconds=QUICK) as running:
        reader, writer = await running.connect()
        writer.write(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\nGET /half HTTP/1.1\r\nHos")
        await running.waiting.acquire()
        # Another connection's deadline passes meanwhile.
        other, other_writer = await running.connect()
        assert await read_to_end(other) == b""
        running.released.set()
        assert b"/wait 0" in await read_to_end(reader)
        writer.close()
        other_writer.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("fd00::1", "fd00::2", True),
        ("fd00::1", "fd00:0:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_peers_are_told_apart_by_what_one_host_has(one: str, other: str, same: bool) -> None:
    assert (peer_group(one) == peer_group(other)) is same
