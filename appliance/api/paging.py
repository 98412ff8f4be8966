"""Pages of lists: offset, limit and order, by the names of OpenGateLLM 0.4.1 and of its later versions."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request

from appliance.api.field_errors import wrong_field
from appliance.api.fields import LARGEST, whole_number
from appliance.api.validation import listed, shown_input

DEFAULT_LIMIT, LARGEST_LIMIT = 10, 100


class Page(msgspec.Struct, frozen=True):
    """Which part of a list, in which order. ``order_by`` is one of the columns that the route allows."""

    offset: int
    limit: int
    order_by: str
    descending: bool

    def clause(self, columns: dict[str, str]) -> str:
        """Return the end of an SQL query; ``columns`` maps the allowed orders to columns. Ties go by id."""
        direction = "DESC" if self.descending else "ASC"
        order = f"ORDER BY {columns[self.order_by]} {direction}, {columns['id']} {direction}"
        return f"{order} LIMIT {self.limit} OFFSET {self.offset}"


def page_of(request: Request[Any, Any, Any], orders: tuple[str, ...] = ("id", "name", "created")) -> Page:
    """Read the page from the query. Raises UnprocessableError (422) for what is out of bounds."""
    return Page(
        offset=query_int(request, "offset", 0, least=0, most=LARGEST),
        limit=query_int(request, "limit", DEFAULT_LIMIT, least=1, most=LARGEST_LIMIT),
        order_by=_choice(request, ("order_by", "sort_by"), orders, "id"),
        descending=_choice(request, ("order_direction", "sort_order"), ("asc", "desc"), "asc") == "desc",
    )


def query_int(request: Request[Any, Any, Any], name: str, default: int, *, least: int, most: int) -> int:
    """Return an integer of the query. Raises UnprocessableError (422)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    return _checked(name, text, least, most)


def optional_query_int(request: Request[Any, Any, Any], name: str) -> int | None:
    """Return an integer of the query, None when it is absent or empty. Raises UnprocessableError (422)."""
    text = request.query_params.get(name)
    return None if text in (None, "", "null") else _checked(name, str(text), 0, LARGEST)


def _checked(name: str, text: str, least: int, most: int) -> int:
    try:
        number = whole_number(text)
    except ValueError:
        raise wrong_field(
            name,
            "Input should be a valid integer, unable to parse string as an integer",
            "int_parsing",
            place="query",
            input=shown_input(text),
        ) from None
    if number < least:
        message = f"Input should be greater than or equal to {least}"
        raise wrong_field(
            name, message, "greater_than_equal", place="query", input=shown_input(text), ctx={"ge": least}
        )
    if number > most:
        message = f"Input should be less than or equal to {most}"
        raise wrong_field(
            name, message, "less_than_equal", place="query", input=shown_input(text), ctx={"le": most}
        )
    return number


def _choice(
    request: Request[Any, Any, Any], names: tuple[str, ...], allowed: tuple[str, ...], default: str
) -> str:
    for name in names:
        value = request.query_params.get(name)
        if value is None:
            continue
        if value not in allowed:
            words = listed(allowed)
            raise wrong_field(
                name,
                f"Input should be {words}",
                "enum",
                place="query",
                input=shown_input(value),
                ctx={"expected": words},
            )
        return str(value)
    return default
