"""How long a prompt and its completion may be together (§14 of the chat and completion contract)."""

from __future__ import annotations

from typing import Literal

from appliance.api.openai.generation.checks import refused
from appliance.errors import InvalidRequestError


def completion_limit(
    prompt_tokens: int, asked: int | None, context_length: int, param: Literal["messages", "prompt"]
) -> int:
    """Return how many tokens may be produced: what was asked, or the rest of the context.

    Raises InvalidRequestError with the contract's text when prompt and completion do not fit.
    """
    if asked is None:
        if prompt_tokens < context_length:
            return context_length - prompt_tokens
        text = f"However, you requested {prompt_tokens} tokens in the {param}, Please reduce the length of the {param}."
    elif prompt_tokens + asked <= context_length:
        return asked
    else:
        text = (
            f"However, you requested {prompt_tokens + asked} tokens ({prompt_tokens} in the {param}, {asked} in the "
            f"completion). Please reduce the length of the {param} or completion."
        )
    raise InvalidRequestError(
        f"This model's maximum context length is {context_length} tokens. {text}",
        param=param,
        code="context_length_exceeded",
    )


def check_truncation(truncate_prompt_tokens: int | None, context_length: int) -> None:
    """Check that a prompt is not to be cut to more than the context. Raises InvalidRequestError."""
    if truncate_prompt_tokens is not None and truncate_prompt_tokens > context_length:
        raise refused(
            "truncate_prompt_tokens",
            "truncate_prompt_tokens value is greater than max_model_len. Please, select a smaller truncation size.",
        )
