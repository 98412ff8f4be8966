"""How many tokens an upstream says that it read and wrote, as far as that can be."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.gateway.upstream.client import Fields

BYTES_PER_TOKEN = 4
# No model reads or writes more in one request; larger figures are nonsense.
MOST_TOKENS = 1 << 30
# Servers send a token to an event; some several, of together so many bytes.
MOST_BYTES_PER_EVENT = 16


class Counts(msgspec.Struct, frozen=True):
    """An upstream's usage. None where it does not say, or not what can be."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_details: Any = None
    completion_details: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


def counts(usage: msgspec.Raw | None) -> Counts:
    """Return what an answer's ``usage`` says."""
    if usage is None:
        return Counts()
    try:
        said = msgspec.json.decode(usage, type=_Usage | None)
    except (msgspec.DecodeError, RecursionError):
        return Counts()
    if said is None:
        return Counts()
    return Counts(
        _sane(said.prompt_tokens),
        _sane(said.completion_tokens),
        _sane(said.total_tokens),
        _details(said.prompt_tokens_details),
        _details(said.completion_tokens_details),
    )


def counts_of(answer: Fields) -> Counts:
    """Return what an answer says."""
    return counts(answer.get("usage"))


def roughly(size: int) -> int:
    """Return about how many tokens a text of ``size`` UTF-8 bytes has."""
    return -(-size // BYTES_PER_TOKEN)


def streamed(events: int, size: int) -> int:
    """Return about how many tokens came with ``events`` events that hold ``size`` bytes of text."""
    return events if size <= events * MOST_BYTES_PER_EVENT else roughly(size)


def _sane(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _details(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
