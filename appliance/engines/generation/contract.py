"""What the rest of the house knows of a generation engine: a request in, a stream of deltas out.

A scheduler (``Scheduler``) decides which requests run in which step. It may be replaced without
touching anything that calls it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. ``temperature`` below 1e-5 is greedy; ``top_k`` -1 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate.

    ``prompt`` is the token ids of the whole prompt (at least one), ``max_tokens`` the most tokens
    to produce (at least one; prompt + max_tokens fit the context). ``stop`` are strings that end
    the text before their first appearance. ``cache_scope`` names whose prompts may share a prefix
    cache with this one: it must never be shared between strangers. A higher ``priority`` is
    admitted first.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    cache_scope: str
    priority: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer: text that is final (no half character, no part of a stop string).

    ``token_ids`` are the tokens produced since the last delta, end-of-sequence included. The last
    delta has ``finish_reason``; ``stop_reason`` is the stop string that matched, or None.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Generation(Protocol):
    """A submitted request. Iterate it once, on the event loop that submitted it."""

    prompt_tokens: int
    # Tokens produced so far, end-of-sequence included.
    completion_tokens: int

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Yield deltas until the one with ``finish_reason``. Raises EngineError when the engine fails."""
        ...

    def cancel(self) -> None:
        """Stop the work within one step and free its place. Harmless when already finished."""
        ...


class Scheduler(Protocol):
    """Runs generation requests on one model."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue ``request``; call it on an event loop.

        Raises OverloadedError when the queue is full, InputRefusedError when it can never run.
        """
        ...

    def close(self) -> None:
        """Stop the engine thread; running requests end with EngineError."""
        ...
