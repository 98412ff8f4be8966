"""Pages of lists: offset, limit and order, by the names of OpenGateLLM 0.4.1 and of its later versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Request

from appliance.api.field_errors import FieldError, UnprocessableError, wrong_field
from appliance.api.fields import LARGEST, row_id, written_number
from appliance.api.validation import listed, shown_input

DEFAULT_LIMIT, LARGEST_LIMIT = 10, 100
# How lists call their order: most by the first names, those of routers (and later versions) by the others.
ORDER_NAMES, SORT_NAMES = ("order_by", "order_direction"), ("sort_by", "sort_order")


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


def page_of(
    request: Request[Any, Any, Any],
    orders: tuple[str, ...] = ("id", "name", "created"),
    names: tuple[str, str] = ORDER_NAMES,
) -> Page:
    """Read the page from the query, whose order goes by ``names``.

    The other names for an order count where these are absent, and where they can; else they are parameters that
    the route does not know. Raises UnprocessableError (422) with all that is out of bounds.
    """
    others = SORT_NAMES if names == ORDER_NAMES else ORDER_NAMES
    offset, limit, order_by, direction = gathered(
        lambda: query_int(request, "offset", 0, least=0, most=LARGEST),
        lambda: query_int(request, "limit", DEFAULT_LIMIT, least=1, most=LARGEST_LIMIT),
        lambda: _choice(request, names[0], others[0], orders, "id"),
        lambda: _choice(request, names[1], others[1], ("asc", "desc"), "asc"),
    )
    return Page(offset=offset, limit=limit, order_by=order_by, descending=direction == "desc")


def gathered(*reads: Callable[[], Any]) -> list[Any]:
    """Return what each of these reads. Raises UnprocessableError (422) with what is wrong with all of them."""
    found: list[Any] = []
    errors: list[FieldError] = []
    for read in reads:
        try:
            found.append(read())
        except UnprocessableError as error:
            errors += error.errors
    if errors:
        raise UnprocessableError(errors)
    return found


def query_text(request: Request[Any, Any, Any], name: str) -> str | None:
    """Return a parameter of the query, the last of several (FastAPI's rule); None when it is absent."""
    values: list[str] = request.query_params.getall(name, [])
    return values[-1] if values else None


def query_int(request: Request[Any, Any, Any], name: str, default: int, *, least: int, most: int) -> int:
    """Return an integer of the query. Raises UnprocessableError (422)."""
    text = query_text(request, name)
    if text is None:
        return default
    return _checked(name, text, least, most)


def optional_query_int(request: Request[Any, Any, Any], name: str) -> int | None:
    """Return an integer of the query, None when it is absent or empty. Raises UnprocessableError (422)."""
    text = query_text(request, name)
    return None if text in (None, "", "null") else _checked(name, str(text), 0, LARGEST)


def optional_query_id(request: Request[Any, Any, Any], name: str) -> int | None:
    """Return an id of the query, None when it is absent or empty; one below 0 is none that any row has.

    Raises UnprocessableError (422).
    """
    text = query_text(request, name)
    return None if text in (None, "", "null") else row_id(_checked(name, str(text), -LARGEST, LARGEST))


def _checked(name: str, text: str, least: int, most: int) -> int:
    number = written_number("query", name, text)
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
    request: Request[Any, Any, Any], name: str, other: str, allowed: tuple[str, ...], default: str
) -> str:
    value = query_text(request, name)
    if value is None:
        alike = query_text(request, other)
        return str(alike) if alike in allowed else default
    if value not in allowed:
        words = listed(allowed)
        raise wrong_field(
            name,
            f"Input should be {words}",
            # The routers' orders are published as types of their own, the others as bare alternatives.
            "enum" if name in SORT_NAMES else "literal_error",
            place="query",
            input=shown_input(value),
            ctx={"expected": words},
        )
    return str(value)
