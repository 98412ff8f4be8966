"""What the bench makes of a server's events: the first text, the end, and the length that was asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.benchmarks.completions import Side, Stream, total_speed

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def choice(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


class Server:
    """Sends ``events`` with a pause before each, once the one before has come; keeps the body that it was sent."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events
        self.body: dict[str, Any] = {}
        self.came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].split()[0])
        self.body = json.loads(await reader.readexactly(length))
        writer.write(HEAD)
        for event in self.events:
            await asyncio.sleep(0.02)
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            self.came.clear()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self.came.wait()
        writer.write(b"0\r\n\r\n")
        writer.close()

    async def ask(self, tokens: int, **fields: Any) -> Stream:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            side = Side(f"http://127.0.0.1:{port}", "m", extra={"a": 1, "b": 1}, cold={"cache_prompt": False})
            return await side.complete([1, 2], tokens, on_piece=lambda _: self.came.set(), **fields)


async def test_the_wait_ends_with_the_first_text_and_the_decode_with_the_last_choice() -> None:
    stream = await Server(choice(""), choice("x"), choice("y"), choice(""), usage(3)).ask(3)
    assert stream.tokens == 3
    assert 0.03 < stream.first < stream.last
    assert stream.last - stream.first > 0.03
    assert stream.tokens_per_second == pytest.approx(2 / (stream.last - stream.first))


@pytest.mark.parametrize(
    "events",
    [
        (choice("x"), usage(2)),
        (choice(""), usage(3)),
        (choice("x"),),
        ({"error": {"message": "no"}},),
    ],
    ids=["another length", "no text", "no usage", "an error"],
)
async def test_an_answer_that_is_not_what_was_asked_for_is_an_error(
    events: tuple[dict[str, Any], ...],
) -> None:
    with pytest.raises(RuntimeError):
        await Server(*events).ask(3)


async def test_a_prompt_is_cold_unless_it_may_be_cached() -> None:
    for cached in (False, True):
        server = Server(choice("x"), usage(1))
        await server.ask(1, cached=cached, b=2)
        assert server.body["ignore_eos"] is True
        assert (server.body["a"], server.body["b"]) == (1, 2)
        assert ("cache_prompt" in server.body) is not cached


def test_the_speed_of_several_streams_counts_until_the_last_one_ends() -> None:
    assert total_speed([Stream(0.1, 1.0, 10), Stream(0.1, 2.0, 10)]) == 10.0
