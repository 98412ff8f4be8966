"""On OpenGateLLM's mount the gateway checks the fields it declares, and the model server behind it the others."""

from __future__ import annotations

from appliance.api.field_errors import FieldError, InvalidFieldError
from appliance.errors import InvalidRequestError

# What is in this list is handed on as it is; tools are objects at least.
_OPEN_LIST = "messages"


def checked_here(error: InvalidFieldError, declared: frozenset[str] | None) -> InvalidRequestError:
    """Return a refusal as the mount has it: wrong fields that it declares, else the model server's 400."""
    if declared is None:
        return error
    kept = [each for each in error.errors if _is_declared(each, declared)]
    if kept:
        return InvalidFieldError(error.message, error.param, kept)
    return InvalidRequestError(error.message, param=error.param)


def _is_declared(error: FieldError, declared: frozenset[str]) -> bool:
    if len(error.loc) < 2:
        return True
    name = error.loc[1]
    return name in declared and not (name == _OPEN_LIST and len(error.loc) > 2)
