"""The request fields that chat and text completions share (§2, §11 to §13 of their contract)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream says besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @property
    def usage(self) -> bool:
        """Whether a last chunk carries the usage."""
        return bool(self.include_usage if self.include_usage is not None else self.continuous_usage_stats)

    @property
    def running_usage(self) -> bool:
        """Whether the chunks before it carry the usage so far."""
        return self.usage and bool(self.continuous_usage_stats)


class GenerationFields(msgspec.Struct, kw_only=True):
    """The fields; null is absent, and fields that no API has are ignored."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None

    n: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    user: Any = None

    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    # Null = as many as the pack's format can say; absent = as the mount has it.
    parallel_tool_calls: bool | msgspec.UnsetType | None = msgspec.UNSET
    enforced_str: str | None = None

    @property
    def choices(self) -> int:
        """How many choices of each prompt are returned."""
        return 1 if self.n is None else self.n

    @property
    def candidates(self) -> int:
        """How many are produced to choose them from."""
        return self.choices if self.best_of is None else self.best_of

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens of one choice, None when the request leaves that to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings in request order."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
