"""Checks that the fields of several resources share. Each raises UnprocessableError (422)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from appliance.api.field_errors import UnprocessableError, wrong_field, wrong_value
from appliance.api.validation import parsed_int, shown_input, text_length_error
from appliance.clock import now_ms

# What SQLite keeps in an integer column.
LARGEST = (1 << 63) - 1
LONGEST_NAME = 256
# The year 9999: a later time is a mistake in the unit.
LATEST_SECOND = 253_402_300_799

Name = Annotated[str, msgspec.Meta(max_length=4096)]


def trimmed(name: str, value: str, longest: int = LONGEST_NAME) -> str:
    """Return a name without blanks around it; it must have at least one character left."""
    text = value.strip()
    if not text:
        # What came is repeated with its blanks.
        raise UnprocessableError([text_length_error(["body", name], value, least=1)])
    return bounded_text(name, text, longest)


def bounded_text(name: str, value: str, longest: int, least: int = 1) -> str:
    """Return a text as it is; it must have ``least`` to ``longest`` characters, none of them NUL."""
    if len(value) < least:
        raise UnprocessableError([text_length_error(["body", name], value, least=least)])
    if len(value) > longest:
        raise UnprocessableError([text_length_error(["body", name], value, most=longest)])
    if "\0" in value:
        raise wrong_value(name, "The text must not contain NUL characters.", shown_input(value))
    return value


def identifier(name: str, text: str) -> int:
    """Return the id in a path, as the store can be asked for it (``row_id``)."""
    return row_id(path_number(name, text))


def path_number(name: str, text: str) -> int:
    """Return the whole number in a path, however large."""
    return written_number("path", name, text)


def written_number(place: str, name: str, text: str) -> int:
    """Return the whole number that the parameter ``name`` of the "path" or the "query" is written as."""
    try:
        return parsed_int(text)
    except ValueError:
        raise wrong_field(
            name,
            "Input should be a valid integer, unable to parse string as an integer",
            "int_parsing",
            place=place,
            input=shown_input(text),
        ) from None


def row_id(number: int) -> int:
    """Return an id as the store can be asked for it: what no row can have becomes 0, which none has."""
    return number if 0 <= number <= LARGEST else 0


def future(name: str, seconds: float | None) -> int | None:
    """Return the UTC milliseconds of a timestamp in seconds that must lie in the future."""
    if seconds is None:
        return None
    if seconds * 1000 <= now_ms() or seconds > LATEST_SECOND:
        raise wrong_value(name, "Wrong timestamp, must be in the future.", seconds)
    return int(seconds) * 1000
