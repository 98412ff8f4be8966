"""Connections of the outbound client: one that breaks says so to whoever reads an answer from it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError


class _Connection(ResponseHandler):
    """Where a later piece of an answer is no HTTP, aiohttp's parser in C leaves its reader to wait for ever."""

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
