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


class UnprocessableError(ApplianceError):
    """Wrong fields on the routes whose clients read FastAPI's 422 list."""

    status = 422
    type = "invalid_request_error"

    def __init__(self, errors: list[FieldError]) -> None:
        first = errors[0]
        super().__init__(first.msg, param=".".join(str(part) for part in first.loc[1:]) or None)
        self.errors = errors


class InvalidFieldError(InvalidRequestError):
    """A body that does not decode into its type: 400, or 422 with ``errors`` where clients read FastAPI's list."""

    def __init__(self, message: str, path: str | None) -> None:
        super().__init__(message, param=path)
        location = ["body", *_steps(path or "")]
        if "missing required field" in message:
            self.errors = [FieldError(location, "Field required", "missing")]
        else:
            self.errors = [FieldError(location, message, "value_error")]


def _steps(path: str) -> list[str | int]:
    """Split a field's path, such as "documents[3].text", as FastAPI does."""
    return [int(step) if step.isdecimal() else step for step in _STEP.findall(path)]


def wrong_field(
    name: str, message: str, kind: str = "value_error", *, place: str = "body"
) -> UnprocessableError:
    """Return the 422 for one field of the body (or of ``place``: "query", "path")."""
    return UnprocessableError([FieldError([place, name], message, kind)])


def wrong_value(name: str, message: str) -> UnprocessableError:
    """Return the 422 for a field whose value breaks a rule that its type does not state."""
    return wrong_field(name, f"Value error, {message}")
