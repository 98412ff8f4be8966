"""Wrong fields of a request, as FastAPI's clients read them."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from appliance.errors import ApplianceError, InvalidRequestError

_STEP = re.compile(r"[^.\[\]]+")


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a 422 ``detail`` list, as FastAPI writes it."""

    loc: list[str | int]
    msg: str
    type: str
    input: Any = msgspec.UNSET
    ctx: Any = msgspec.UNSET


class UnprocessableError(ApplianceError):
    """Wrong fields on the routes whose clients read FastAPI's 422 list."""

    status = 422
    type = "invalid_request_error"

    def __init__(self, errors: list[FieldError]) -> None:
        first = errors[0]
        # The place where a body ends to be JSON is no field.
        path = [] if first.type == "json_invalid" else first.loc[1:]
        super().__init__(first.msg, param=".".join(map(str, path)) or None)
        self.errors = errors


class InvalidFieldError(InvalidRequestError):
    """A body that does not decode into its type: 400, or 422 with ``errors`` where clients read FastAPI's list."""

    def __init__(self, message: str, path: str | None, errors: list[FieldError] | None = None) -> None:
        super().__init__(message, param=path)
        self.errors = errors or [_told(message, path)]


class UnreadableBodyError(InvalidRequestError):
    """A body that is no JSON: 400, or 422 on OpenGateLLM's routes. ``place`` is the byte where it ends to be."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(f"The request body is not valid JSON: {reason}")
        self.errors = [
            FieldError(["body", place], "JSON decode error", "json_invalid", {}, {"error": reason})
        ]


class AbsentBodyError(UnreadableBodyError):
    """A request without a body, where there must be one."""

    def __init__(self) -> None:
        super().__init__("it is empty", 0)
        self.errors = [FieldError(["body"], "Field required", "missing", None)]


def _told(message: str, path: str | None) -> FieldError:
    """Return the entry for what only the decoder knows."""
    location = ["body", *_steps(path or "")]
    if "missing required field" in message:
        return FieldError(location, "Field required", "missing")
    return FieldError(location, f"Value error, {message}", "value_error", ctx={"error": {}})


def _steps(path: str) -> list[str | int]:
    """Split a field's path, such as "documents[3].text", as FastAPI does."""
    return [int(step) if step.isdecimal() and len(step) < 10 else step for step in _STEP.findall(path)]


def wrong_field(
    name: str,
    message: str,
    kind: str = "value_error",
    *,
    place: str = "body",
    input: Any = msgspec.UNSET,  # noqa: A002 - the published list calls it so
    ctx: Any = msgspec.UNSET,
) -> UnprocessableError:
    """Return the 422 for one field of the body (or of ``place``: "query", "path")."""
    return UnprocessableError([FieldError([place, name], message, kind, input, ctx)])


def wrong_value(name: str, message: str, given: Any = msgspec.UNSET) -> UnprocessableError:
    """Return the 422 for a field whose value, ``given``, breaks a rule that its type does not state."""
    return wrong_field(name, f"Value error, {message}", input=given, ctx={"error": {}})


def missing_field(name: str, *, place: str = "body") -> UnprocessableError:
    """Return the 422 for a field that must be there."""
    return wrong_field(name, "Field required", "missing", place=place)
