"""The four forms of a prompt or an embedding input: a text, texts, token ids, lists of token ids."""

from __future__ import annotations

from typing import Any

from appliance.errors import InvalidRequestError


def text_or_tokens(value: str | list[Any], param: str) -> tuple[list[str], list[list[int]]]:
    """Return the texts or the token lists in ``value``; the other list is empty.

    Raises InvalidRequestError naming ``param`` for mixed or other forms. Empty items are left to the caller.
    """
    if isinstance(value, str):
        return [value], []
    if value and _are_ids(value):
        return [], [value]
    if all(isinstance(item, str) for item in value):
        return list(value), []
    if all(isinstance(item, list) and _are_ids(item) for item in value):
        return [], list(value)
    raise InvalidRequestError(
        f"{param} must be a string, array of strings, array of tokens, or array of token arrays", param=param
    )


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)
