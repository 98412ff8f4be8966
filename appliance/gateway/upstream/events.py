"""Server-sent events as they arrive, in pieces cut anywhere; and the stream of an upstream's answer."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator

import aiohttp

from appliance.gateway.upstream.client import BROKEN, Content, Upstream, begin
from appliance.gateway.upstream.failures import from_exception, unavailable

log = logging.getLogger(__name__)

# The most that comes up to the end of an event since the one before, what is dropped included: a server that works
# for long may say so every second or so. Each line is looked at, so those without end would keep the box busy.
MAX_EVENT_BYTES = 8 << 20
MOST_LINES = 10_000
DONE = b"[DONE]"
# How long an upstream may take to end an answer after it said that it is done.
LINGER_SECONDS = 1.0

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLongError(ValueError):
    """An event beyond the bound."""


class EventParser:
    """Takes the bytes of a stream in any pieces and gives the data of each event, as it is complete.

    Comments and fields other than ``data`` are dropped, and so are events without data.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        # Bytes and lines since the last event.
        self._size = self._lines = 0
        self._first_line = True
        # The last piece ended with "\r": a "\n" now belongs to it.
        self._after_return = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that ``piece`` completes. Raises EventTooLongError."""
        if not piece:
            return []
        if self._after_return and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_return = piece.endswith(b"\r")
        lines = _LINE_END.split(piece)
        events: list[bytes] = []
        for part in lines[:-1]:
            self._extend(part)
            self._end_line(events)
        self._extend(lines[-1])
        return events

    def finish(self) -> list[bytes]:
        """Return the data of an event that the stream's end completes: not all servers end it themselves."""
        events: list[bytes] = []
        self._end_line(events)
        self._end_event(events)
        return events

    def _extend(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_bytes:
            raise EventTooLongError(f"an event of more than {self._max_bytes} bytes")
        self._line += part

    def _end_line(self, events: list[bytes]) -> None:
        self._lines += 1
        if self._lines > MOST_LINES:
            raise EventTooLongError(f"an event of more than {MOST_LINES} lines")
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._first_line = False
        if not line:
            self._end_event(events)
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))

    def _end_event(self, events: list[bytes]) -> None:
        if self._data:
            events.append(b"\n".join(self._data))
            self._data.clear()
            self._size = self._lines = 0


class EventStream:
    """The events of one answer. It must be closed, by ``close`` or ``abandon``.

    ``done`` says whether the upstream ended the stream itself, with ``[DONE]``.
    """

    def __init__(self, upstream: Upstream, response: aiohttp.ClientResponse) -> None:
        self.done = False
        self._upstream = upstream
        self._response = response
        self._events = self._read()
        self._ahead: bytes | None = None
        self._closing: asyncio.Task[None] | None = None

    async def first(self) -> None:
        """Wait for the first event, which ``next`` then returns.

        Raises UpstreamUnavailableError when there is none, or none in time.
        """
        kind = self._response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise unavailable(self._upstream.name, f"answers {kind!r} in place of a stream")
        self._ahead = await self.next()
        if self._ahead is None:
            raise unavailable(self._upstream.name, "ends a stream before its first event")

    async def next(self) -> bytes | None:
        """Return the data of the next event, None after the last. Raises UpstreamUnavailableError."""
        event: bytes | None
        if self._ahead is not None:
            event, self._ahead = self._ahead, None
            return event
        try:
            async with asyncio.timeout(self._upstream.timeout):
                event = await anext(self._events, None)
        except EventTooLongError as error:
            raise unavailable(self._upstream.name, f"sends {error}") from error
        except BROKEN as error:
            raise from_exception(self._upstream.name, error) from error
        if event == DONE:
            self.done = True
            return None
        return event

    async def close(self) -> None:
        """Close the connection, which stops the upstream's work; after its end it is kept for another call."""
        try:
            if self.done:
                # Only what is there already: a server may forget to end what it said is done.
                async with asyncio.timeout(LINGER_SECONDS):
                    await anext(self._events, None)
        except (TimeoutError, EventTooLongError, *BROKEN) as error:
            log.info("%s: does not end a stream that is done: %r", self._upstream.name, error)
        finally:
            self._response.close()  # first: nothing may keep the upstream working
            await self._events.aclose()

    def abandon(self) -> None:
        """Close it soon; for callers that cannot wait. Nothing may be reading any more."""
        if not self._response.closed and self._closing is None:
            self._closing = asyncio.create_task(self.close(), name="close an upstream's stream")

    async def _read(self) -> AsyncGenerator[bytes, None]:
        parser = EventParser()
        async for piece in self._response.content.iter_any():
            for event in parser.feed(piece):
                yield event
        for event in parser.finish():
            yield event


async def open_stream(
    client: aiohttp.ClientSession, upstream: Upstream, path: str, content: Content, headers: dict[str, str]
) -> EventStream:
    """Send a request and return its stream, whose first event is there. Raises as ``client.begin``.

    The upstream's ``timeout`` bounds the wait for the first event, and for each next one.
    """
    try:
        async with asyncio.timeout(upstream.timeout):
            response = await begin(
                client, upstream, path, content, {"Accept": "text/event-stream", **headers}
            )
            stream = EventStream(upstream, response)
            try:
                await stream.first()
            except BaseException:
                await stream.close()
                raise
            return stream
    except TimeoutError as error:
        raise from_exception(upstream.name, error) from error
