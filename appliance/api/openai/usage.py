"""The token counts in an answer."""

from __future__ import annotations

from typing import Any

import msgspec


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of the prompt(s) and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


class PromptUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request that produces none."""

    prompt_tokens: int
    total_tokens: int


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Sum up one request."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def prompt_usage(prompt_tokens: int) -> PromptUsage:
    """Sum up a request without completion."""
    return PromptUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)
