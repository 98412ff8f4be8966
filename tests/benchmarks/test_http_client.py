"""The bench's client against a raw server: frames that arrive torn or several at once keep their times."""

from __future__ import annotations

import asyncio

import pytest

from tests.benchmarks.http_client import Answer, Connection

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def ask(*pieces: bytes) -> Answer:
    """Return the client's answer to a server that sends ``pieces`` one by one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Connection(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as connection:
        return await connection.post("/v1/completions", {"prompt": [1]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_events_of_torn_and_joined_frames() -> None:
    answer = await ask(
        HEAD,
        chunk(b'data: {"a": 1}\n\nda'),
        chunk(b'ta: {"a": 2}\n\n'),
        chunk(b'data: {"a": 3}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n",
    )
    events = answer.events()
    assert [event["a"] for _, event in events] == [1, 2, 3]
    assert events[0][0] <= events[1][0] <= events[2][0] <= answer.seconds


async def test_an_error_status_is_raised_with_the_body() -> None:
    answer = await ask(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
    with pytest.raises(RuntimeError, match="503: busy"):
        answer.events()


async def test_a_connection_that_ends_inside_the_answer_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        await ask(HEAD, chunk(b"data: "))
