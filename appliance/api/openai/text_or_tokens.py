"""The four forms of a prompt or an embedding input: a text, texts, token ids, lists of token ids."""

from __future__ import annotations

from typing import Any

from appliance.errors import InvalidRequestError

# A list of ids this many times longer than the context is refused before anything looks at the ids.
SLACK = 4


def text_or_tokens(
    value: str | list[Any], param: str, *, max_items: int, context_length: int
) -> tuple[list[str], list[list[int]]]:
    """Return the texts or the token lists in ``value``; the other list is empty.

    Lengths are checked first: this runs on the event loop. Raises InvalidRequestError naming ``param``
    for mixed or other forms, more than ``max_items`` items, and token lists far beyond
    ``context_length``. Empty items are left to the caller.
    """
    if isinstance(value, str):
        return [value], []
    if value and type(value[0]) is int:
        _check_length(value, param, context_length)
        if _are_ids(value):
            return [], [value]
        raise _wrong_form(param)
    if len(value) > max_items:
        raise InvalidRequestError(
            f"{param} may hold at most {max_items} items, got {len(value)}.", param=param
        )
    if all(isinstance(item, str) for item in value):
        return list(value), []
    if not all(isinstance(item, list) for item in value):
        raise _wrong_form(param)
    for item in value:
        _check_length(item, param, context_length)
    if all(_are_ids(item) for item in value):
        return [], list(value)
    raise _wrong_form(param)


def _check_length(ids: list[Any], param: str, context_length: int) -> None:
    if len(ids) > SLACK * context_length:
        raise InvalidRequestError(
            f"This model's maximum context length is {context_length} tokens. However, you requested {len(ids)} "
            f"tokens in the {param}. Please reduce the length of the {param}.",
            param=param,
            code="context_length_exceeded",
        )


def _wrong_form(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param} must be a string, array of strings, array of tokens, or array of token arrays", param=param
    )


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)
