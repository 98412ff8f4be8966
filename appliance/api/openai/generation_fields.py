"""The request fields that chat and text completions share, their bounds, and what is not served yet."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.engines.generation.contract import Sampling
from appliance.errors import InvalidRequestError

MAX_STOPS = 64
MAX_LOGPROBS = 20
INT64_MAX = (1 << 63) - 1


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream says besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @property
    def usage(self) -> bool:
        """Whether a last chunk carries the usage."""
        return bool(self.include_usage if self.include_usage is not None else self.continuous_usage_stats)


class GenerationFields(msgspec.Struct, kw_only=True):
    """Fields of §2 of the chat and completion contract; null is absent."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Any = None

    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    echo: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    enforced_str: str | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings in request order."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


GUIDED_BACKENDS = ("outlines", "lm-format-enforcer")

# The values at which a field that is not served yet has no effect, besides null.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "skip_special_tokens": (True,),
    "logit_bias": ({},),
    "echo": (False,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "enforced_str": ("",),
}


def refuse_unserved(fields: GenerationFields, no_effect: dict[str, tuple[Any, ...]]) -> None:
    """Raise InvalidRequestError for a field of the contract that would have an effect but is not served."""
    for name, harmless in no_effect.items():
        value = getattr(fields, name)
        if value is not None and value not in harmless:
            raise unserved(name)
    if fields.include_stop_str_in_output and fields.stop_strings():
        raise unserved("include_stop_str_in_output")
    if fields.tools and fields.tool_choice != "none":
        raise unserved("tools")
    if fields.tool_choice not in (None, "none"):
        raise InvalidRequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    backend = fields.guided_decoding_backend
    if backend is not None and backend not in GUIDED_BACKENDS:
        raise InvalidRequestError(
            f"Unknown guided decoding backend '{backend}'. Must be one of 'outlines, 'lm-format-enforcer'",
            param="guided_decoding_backend",
        )


def unserved(name: str) -> InvalidRequestError:
    """Return the refusal of a field that this server does not act on yet."""
    return InvalidRequestError(
        f"`{name}` with this value is not supported by this server.", param=name, code="unsupported_parameter"
    )


def check_bounds(fields: GenerationFields) -> None:
    """Check the ranges, in the contract's words. Raises InvalidRequestError."""
    if not isinstance(fields.stop, str) and len(fields.stop or ()) > MAX_STOPS:
        raise _out_of_range(
            "stop", f"stop may hold at most {MAX_STOPS} strings, got {len(fields.stop or ())}."
        )
    _check_temperature(fields.temperature)
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(fields, name)
        if value is not None and not -2 <= value <= 2:
            raise _out_of_range(name, f"{name} must be in [-2, 2], got {_plain(value)}.")
    if fields.repetition_penalty is not None and not 0 < fields.repetition_penalty <= 2:
        value = fields.repetition_penalty
        raise _out_of_range(
            "repetition_penalty", f"repetition_penalty must be in (0, 2], got {_plain(value)}."
        )
    if fields.min_p is not None and not 0 <= fields.min_p <= 1:
        raise _out_of_range("min_p", f"min_p must be in [0, 1], got {_plain(fields.min_p)}.")
    if fields.n is not None and fields.n < 1:
        raise _out_of_range("n", f"n must be at least 1, got {fields.n}.")
    if fields.top_p is not None and not 0 < fields.top_p <= 1:
        raise _out_of_range("top_p", f"top_p must be in (0, 1], got {_plain(fields.top_p)}.")
    if fields.top_k is not None and fields.top_k != -1 and fields.top_k < 1:
        raise _out_of_range("top_k", f"top_k must be -1 (disable), or at least 1, got {fields.top_k}.")
    if "" in fields.stop_strings():
        raise _out_of_range("stop", "stop cannot contain an empty string.")
    if fields.max_tokens is not None:
        check_max_tokens("max_tokens", fields.max_tokens)


def check_max_tokens(name: str, value: int) -> None:
    """Check a completion limit. Raises InvalidRequestError."""
    if value < 1:
        raise _out_of_range(name, f"{name} must be at least 1, got {value}.")


def sampling_of(fields: GenerationFields, default_temperature: float) -> Sampling:
    """Return the sampling parameters; a seed of -1 is no seed, seeds beyond int64 are clamped."""
    seed = fields.seed
    if seed is not None:
        seed = None if seed == -1 else max(-INT64_MAX - 1, min(seed, INT64_MAX))
    return Sampling(
        temperature=default_temperature if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=-1 if fields.top_k is None else fields.top_k,
        seed=seed,
    )


def completion_limit(prompt_tokens: int, asked: int | None, context_length: int, *, messages: bool) -> int:
    """Return how many tokens may be produced: what was asked, or the rest of the context.

    Raises InvalidRequestError with the contract's text when prompt and completion do not fit.
    """
    param = "messages" if messages else "prompt"
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


def _check_temperature(value: float | None) -> None:
    if value is None or 0 <= value <= 2:
        return
    if value < 0:
        raise _out_of_range("temperature", f"temperature must be non-negative, got {_plain(value)}.")
    raise _out_of_range("temperature", f"temperature must be in [0, 2], got {_plain(value)}.")


def _out_of_range(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=name)


def _plain(value: float) -> str:
    return repr(value)
