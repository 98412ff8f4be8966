"""``/v1/completions`` over HTTP with one client for every server: a side of the generation bench."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.http_client import Connection

PATH = "/v1/completions"


@dataclass(frozen=True)
class Stream:
    """When the first text and the end came (seconds since the request), and how many tokens were made."""

    first: float
    last: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """The speed after the first token."""
        return (self.tokens - 1) / (self.last - self.first)


@dataclass(frozen=True)
class Side:
    """One server: how to reach it, and what it wants in the body beside the usual fields.

    ``cold`` is added to requests whose prompt must not be found in a cache.
    """

    base_url: str
    model: str
    key: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    cold: Mapping[str, Any] = field(default_factory=dict)

    async def complete(
        self,
        prompt: Sequence[int],
        tokens: int,
        *,
        cached: bool = False,
        on_piece: Callable[[bytes], None] | None = None,
        **fields: Any,
    ) -> Stream:
        """Continue ``prompt`` by exactly ``tokens`` tokens, greedily and past any end of sequence.

        ``cached`` says that the server may use what it computed before; ``fields`` go into the body
        over all others. Raises RuntimeError when the answer is an error or has another length.
        """
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
            **({} if cached else self.cold),
            **fields,
        }
        async with Connection(self.base_url, self.key) as connection:
            answer = await connection.post(PATH, body, on_piece)
        return _stream(answer.events(), tokens)

    async def complete_all(
        self, prompts: Sequence[Sequence[int]], tokens: int, **fields: Any
    ) -> list[Stream]:
        """Continue all ``prompts`` at once."""
        return await asyncio.gather(*(self.complete(prompt, tokens, **fields) for prompt in prompts))


def total_speed(streams: Sequence[Stream]) -> float:
    """Return the tokens of all streams over the time until the last one ended."""
    return sum(stream.tokens for stream in streams) / max(stream.last for stream in streams)


def _stream(events: Sequence[tuple[float, Any]], tokens: int) -> Stream:
    made: int | None = None
    with_text: list[float] = []
    with_choice: list[float] = []
    for seconds, event in events:
        if "error" in event:
            raise RuntimeError(str(event["error"]))
        choices = event.get("choices") or ()
        with_choice += [seconds] * bool(choices)
        with_text += [seconds] * any(choice.get("text") for choice in choices)
        if event.get("usage"):
            made = event["usage"]["completion_tokens"]
    if made != tokens or not with_text:
        raise RuntimeError(f"{tokens} tokens were asked for, {made} were made")
    # The event that says why it ended comes with or right after the last token, which may have no text.
    return Stream(with_text[0], with_choice[-1], tokens)
