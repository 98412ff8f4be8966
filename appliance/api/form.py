"""Reading multipart forms with one file: bounded in memory, the file on disk as it arrives.

We drive the parser ourselves: Litestar's form reader keeps text fields of any size in memory and decodes
them with whatever codec the client names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

from litestar import Request
from litestar.exceptions.http_exceptions import InternalServerException, RequestEntityTooLarge
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from appliance.api.disconnect import ClientGoneError
from appliance.errors import InvalidRequestError
from appliance.storage.spool import Spool, Upload

MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 64
MAX_FILELESS_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 10
MAX_HEADERS = 8
# RFC 2046 allows 70.
MAX_BOUNDARY_BYTES = 256
# A file goes to disk in pieces of at least this size, each in a thread.
WRITE_BYTES = 256 << 10
SHOWN_CHARACTERS = 100

MULTIPART = "multipart/form-data"
URL_ENCODED = "application/x-www-form-urlencoded"


class Form:
    """A form's text fields by name, each with its values in order, and its one file."""

    def __init__(self) -> None:
        self.fields: dict[str, list[str]] = {}
        self.file: Upload | None = None

    def get(self, name: str) -> str | None:
        """Return the first value of a field, None without one."""
        values = self.fields.get(name)
        return values[0] if values else None

    def add(self, name: str, value: str) -> None:
        """Take up one more value of a field."""
        self.fields.setdefault(name, []).append(value)

    def getall(self, name: str) -> list[str]:
        """Return all values of a field."""
        return self.fields.get(name, [])


def shown(value: str) -> str:
    """Return a client's value as an error message may repeat it: not all of it when it is long."""
    return value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 1] + "…"


@asynccontextmanager
async def uploaded_form(
    request: Request[Any, Any, Any], spool: Spool, *, file_field: str, max_bytes: int
) -> AsyncIterator[Form]:
    """Read the whole body, at most ``max_bytes``; the file of ``file_field`` lives as long as the context.

    Text is UTF-8 whatever charset a part names; other files than that are read past. What clients send when they
    have no file, application/x-www-form-urlencoded, is read too. Raises InvalidRequestError (400) for a body that
    is neither, is malformed, has too many or too large parts, or a second file; RequestEntityTooLarge (413),
    StoreFullError (503) without disk space, ClientGoneError when it breaks off.
    """
    if content_type(request) == URL_ENCODED:
        yield await _fileless(request)
        return
    parser = _parser(request)
    announced = request.content_length or 0
    if announced > max_bytes:
        raise RequestEntityTooLarge
    spool.check_room(announced)
    with ExitStack() as stack:
        reader = _FormReader(spool, file_field, stack)
        try:
            with parser:
                await _read(request, parser, reader, max_bytes)
        except MultipartError as error:
            # Only the text: other arguments may hold a piece of the body.
            raise InvalidRequestError(f"The form cannot be read: {shown(str(error.args[0]))}.") from None
        yield reader.form


def content_type(request: Request[Any, Any, Any]) -> str:
    """Return the media type of a request's body, without its options; "" when it names none."""
    kind: str = parse_options_header(request.headers.get("content-type", ""))[0]
    return kind


async def _fileless(request: Request[Any, Any, Any]) -> Form:
    """Read a form of text fields alone."""
    body = b"".join([chunk async for chunk in _chunks(request, MAX_FILELESS_BYTES)])
    form = Form()
    try:
        fields = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS
        )
    except UnicodeDecodeError:
        raise InvalidRequestError("The form must be UTF-8 text.") from None
    except ValueError:
        raise InvalidRequestError(f"The form may have at most {MAX_PARTS} fields.") from None
    for name, value in fields:
        if len(value.encode()) > MAX_FIELD_BYTES:
            raise _too_large(name)
        form.add(name, value)
    return form


async def _read(
    request: Request[Any, Any, Any], parser: PushMultipartParser, reader: _FormReader, max_bytes: int
) -> None:
    async with aclosing(_chunks(request, max_bytes)) as chunks:
        async for chunk in chunks:
            for event in parser.parse(chunk):
                await reader.take(event)


async def _chunks(request: Request[Any, Any, Any], max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, at most ``max_bytes``."""
    received = 0
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                received += len(chunk)
                if received > max_bytes:
                    raise RequestEntityTooLarge
                if chunk:  # the last one is empty
                    yield chunk
    except InternalServerException:  # how the stream says that it broke off
        raise ClientGoneError("The client closed the connection.") from None


def _parser(request: Request[Any, Any, Any]) -> PushMultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != MULTIPART:
        raise InvalidRequestError("The request body must be multipart/form-data.")
    boundary = options.get("boundary", "").encode("latin-1", "replace")  # as the header was decoded
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES or b"\r" in boundary or b"\n" in boundary:
        raise InvalidRequestError("The Content-Type of the form must name a boundary.")
    return PushMultipartParser(
        boundary,
        max_header_size=MAX_HEADER_BYTES,
        max_header_count=MAX_HEADERS,
        max_segment_count=MAX_PARTS,
    )


class _FormReader:
    """Turns the parser's events (a part's head, its data, its end) into a form."""

    def __init__(self, spool: Spool, file_field: str, stack: ExitStack) -> None:
        self.form = Form()
        self._spool = spool
        self._file_field = file_field
        self._stack = stack
        self._name = ""
        self._is_file = False
        self._is_foreign = False
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    async def take(self, event: MultipartSegment | bytes | None) -> None:
        if isinstance(event, MultipartSegment):
            await self._start(event)
        elif event is not None:
            await self._data(event)
        else:
            await self._end()

    async def _start(self, part: MultipartSegment) -> None:
        self._name = part.name or ""
        self._is_file = part.filename is not None
        self._is_foreign = self._is_file and self._name != self._file_field
        if not self._is_file or self._is_foreign:
            return
        if self.form.file is not None:
            raise _wrong(self._name, "must be sent once")
        self.form.file = self._stack.enter_context(self._spool.upload())

    async def _data(self, data: bytes) -> None:
        if self._is_foreign:
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._is_file:
            if self._pending_bytes >= WRITE_BYTES:
                await self._write()
        elif self._pending_bytes > MAX_FIELD_BYTES:
            raise _too_large(self._name)

    async def _end(self) -> None:
        if self._is_file:
            if self._pending:
                await self._write()
            return
        try:
            value = self._taken().decode("utf-8")
        except UnicodeDecodeError:
            raise _wrong(self._name, "must be UTF-8 text") from None
        self.form.add(self._name, value)

    async def _write(self) -> None:
        if self.form.file is not None:
            await asyncio.to_thread(self.form.file.write, self._taken())

    def _taken(self) -> bytes:
        taken, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        return taken


def _too_large(name: str) -> InvalidRequestError:
    return _wrong(name, f"must be at most {MAX_FIELD_BYTES} bytes")


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{shown(name)}` {what}.", param=shown(name))
