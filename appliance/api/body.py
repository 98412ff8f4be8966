"""Reading JSON bodies: size, depth and type checks before anything else looks at them."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from appliance.api.disconnect import ClientGoneError
from appliance.api.field_errors import (
    AbsentBodyError,
    InvalidFieldError,
    UnprocessableError,
    UnreadableBodyError,
)
from appliance.api.fields import identifier
from appliance.api.leniency import lenient
from appliance.api.validation import field_errors
from appliance.errors import InvalidRequestError

T = TypeVar("T")

# Larger bodies are decoded in a thread, one at a time: their memory adds up.
INLINE_BYTES = 1 << 20
# Decoding is one call that holds the GIL, and its time goes with the number of values: two million take
# about 0.2 s. Commas and brackets inside texts count too; 64 MB of prose have about a million.
MAX_VALUES = 2_000_000

_large_bodies = asyncio.Semaphore(1)

_PLACE = re.compile(r" \(byte (?P<place>[0-9]+)\)$")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")


async def read_json(request: Request[Any, Any, Any], type_: type[T]) -> T:
    """Read and decode the body. Raises what ``read_body`` and ``decoded`` raise."""
    return await decoded(await read_body(request), type_)


async def read_change(request: Request[Any, Any, Any], name: str, text: str, type_: type[T]) -> tuple[int, T]:
    """Read the id that the path parameter ``name`` has in ``text``, and the body.

    Raises UnprocessableError with all that is wrong with both, and what ``read_json`` raises.
    """
    try:
        number = identifier(name, text)
    except UnprocessableError as error:
        wrong = error.errors
    else:
        return number, await read_json(request, type_)
    try:
        await read_json(request, type_)
    except (AbsentBodyError, InvalidFieldError) as error:
        wrong = [*wrong, *error.errors]
    raise UnprocessableError(wrong)


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """Return the whole body. Raises ClientGoneError when the client leaves before its end."""
    try:
        return await request.body()
    except InternalServerException:  # the framework's word for a client that leaves in the middle of it
        raise ClientGoneError("The client closed the connection.") from None


async def decoded(body: bytes, type_: type[T]) -> T:
    """Decode a JSON body into ``type_``, numbers and booleans also from their text form.

    Raises InvalidFieldError when it is not of the type, UnreadableBodyError when it is not JSON,
    InvalidRequestError (400) when it is nested too deeply or has too many values.
    """
    try:
        if len(body) <= INLINE_BYTES:
            return _told_apart(body, type_)
        if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise InvalidRequestError("The request body holds too many values.")
        async with _large_bodies:
            return await asyncio.to_thread(_told_apart, body, type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter for bytes that are no UTF-8
        if not body:
            raise AbsentBodyError from None
        place = _PLACE.search(str(error))
        raise UnreadableBodyError(str(error), int(place["place"]) if place else len(body)) from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply.") from None


async def peeked(body: bytes, type_: type[T]) -> T | None:
    """Decode a body into a type of few fields, the others unread; None when it does not decode."""
    try:
        return await decoded(body, type_)
    except InvalidRequestError:
        return None


def _told_apart(body: bytes, type_: type[T]) -> T:
    """Decode a body; raise InvalidFieldError, which knows every wrong field, where it is not of the type.

    What only the decoder refuses ("yes" for true, " 5 " for 5) is read once more, and not said to be wrong.
    """
    try:
        return decode(body, type_)
    except msgspec.ValidationError as error:
        refused, errors = error, field_errors(body, type_)
    # Without a type neither great depth nor numbers of many digits can be read.
    with suppress(msgspec.ValidationError, RecursionError):
        value = lenient(msgspec.json.decode(body), type_)
        try:
            taken = msgspec.convert(value, type_, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidFieldError(*describe(error), errors) from None
        if not errors:
            return taken
    raise InvalidFieldError(*describe(refused), errors)


def decode(body: bytes, type_: type[T]) -> T:
    """Decode JSON into ``type_`` leniently ("5" and 5.0 are the integer 5)."""
    return msgspec.json.decode(body, type=type_, strict=False)


def describe(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """Split a validation error into a text and the path of the field, such as ``messages[0].role``."""
    text = str(error)
    match = _PATH.search(text)
    if match is None:
        missing = re.search(r"missing required field `([^`]+)`", text)
        return text, missing.group(1) if missing else None
    path = match.group("path") or None
    return (f"{path}: {text[: match.start()]}" if path else text[: match.start()]), path
