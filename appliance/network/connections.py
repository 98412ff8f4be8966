"""Connections of the outbound client: one that breaks says so to whoever reads an answer from it.

And one on which a server says more than it was asked for is closed: it would pass for the next request's answer.
"""

from __future__ import annotations

import asyncio
import select
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage

# A server that works for long may say so every second or so, before its answer.
MOST_INTERIM_HEADS = 1000


class _Connection(ResponseHandler):
    """One connection, over which requests go one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        # Whether the last request has its answer's head, and how many came that are none (100 to 199).
        self._answered = False
        self._interim_heads = 0

    def set_response_params(self, **options: Any) -> None:
        """Take note that a request is about to be sent."""
        self._answered, self._interim_heads = False, 0
        super().set_response_params(**options)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a head that the parser has read."""
        if self._answered or self._interim_heads == MOST_INTERIM_HEADS:
            self._end()
            return
        status = data[0].code
        self._answered = status >= HTTPStatus.OK
        if status == HTTPStatus.REQUEST_TIMEOUT:
            # Of the silence before it: such a server may answer this request yet, to whoever would ask next.
            self.force_close()
        self._interim_heads += not self._answered
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Take what a server sends; what comes after an answer's end ends the connection.

        aiohttp keeps it, and gives it to the next request, which may be another user's.
        """
        answer = self._payload
        if data and self._answered and answer is not None and answer.is_eof():
            self._end()
            return
        super().data_received(data)

    def is_connected(self) -> bool:
        """Tell whether the next request may go over it: not where more came than an answer, though it be unread."""
        if not super().is_connected() or self.transport is None:
            return False
        if not self._answered:
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    def _end(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    # Where a later piece of an answer is no HTTP, aiohttp's parser in C leaves its reader to wait for ever.
    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail what waits for an answer, and what reads one that came in part."""
        super().set_exception(exc, *cause)
        answer = self._payload
        if isinstance(exc, HttpProcessingError) and answer is not None and not answer.is_eof():
            answer.set_exception(aiohttp.ClientPayloadError(f"The answer is no HTTP: {exc.message}"))


def _connection(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Connection(loop)


class Connector(aiohttp.TCPConnector):
    """aiohttp's own connector, with connections that fail at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The one place where aiohttp lets its connections be others; the tests of connections break without it.
        self._factory = partial(_connection, loop=self._loop)
