"""One lean HTTP/1.1 client for every side that speaks HTTP: raw asyncio and a parser in C.

The client runs on the cores that it measures, so it only notes when bytes came and parses them
afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

ANSWER_SECONDS = 300


@dataclass
class Answer:
    """What came back: the status, and the body's pieces with their times (seconds since the request was sent)."""

    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)

    def json(self) -> Any:
        """Return the body's JSON. Raises RuntimeError when the status is not 200."""
        self.check()
        return json.loads(self.body)

    def check(self) -> None:
        """Raise RuntimeError when the status is not 200."""
        if self.status != 200:
            raise RuntimeError(f"HTTP {self.status}: {self.body[:2000].decode('utf-8', 'replace')}")

    def events(self) -> list[tuple[float, Any]]:
        """Return the Server-Sent Events (but ``[DONE]``) as (seconds, JSON). Raises RuntimeError like ``check``."""
        self.check()
        found: list[tuple[float, Any]] = []
        rest = b""
        for seconds, piece in self.pieces:
            *frames, rest = (rest + piece).split(b"\n\n")
            for frame in frames:
                data = frame.partition(b"data: ")[2]
                if data and data != b"[DONE]":
                    found.append((seconds, json.loads(data)))
        return found


class Connection:
    """A kept-alive connection that carries one request at a time."""

    def __init__(self, base_url: str, key: str = "") -> None:
        address = urlsplit(base_url)
        self._host = address.hostname or ""
        self._port = address.port or 80
        self._authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Connection:
        self._streams = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def post(
        self, path: str, body: dict[str, Any], on_piece: Callable[[bytes], None] | None = None
    ) -> Answer:
        """Send ``body`` as JSON and return the whole answer with its times; ``on_piece`` gets its pieces as they come.

        Raises TimeoutError, ConnectionError.
        """
        assert self._streams is not None
        reader, writer = self._streams
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{self._authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        async with asyncio.timeout(ANSWER_SECONDS):
            started = time.perf_counter()
            writer.write(head.encode() + content)
            receiver = _Receiver(started, on_piece)
            while not receiver.complete:
                data = await reader.read(1 << 16)
                if not data:
                    raise ConnectionError("the server closed the connection in the middle of an answer")
                receiver.feed(data)
        return receiver.answer


class _Receiver:
    """The parser's callbacks."""

    def __init__(self, started: float, on_piece: Callable[[bytes], None] | None) -> None:
        self.answer = Answer()
        self._on_piece = on_piece
        self.complete = False
        self._started = started
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.pieces.append((time.perf_counter() - self._started, body))
        if self._on_piece is not None:
            self._on_piece(body)

    def on_message_complete(self) -> None:
        self.answer.seconds = time.perf_counter() - self._started
        self.complete = True
