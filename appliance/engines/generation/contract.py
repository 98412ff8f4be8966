"""What the rest of the house knows of a generation engine: requests in, streams of deltas out.

A scheduler (``Scheduler``) decides which requests run in which step. It may be replaced without
touching anything that calls it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]

Logits = NDArray[np.float32]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. ``temperature`` below 1e-5 is greedy; ``top_k`` -1 is off.

    ``logit_bias`` holds (token id, added value), ids inside the vocabulary and each once.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


class ConstraintState(Protocol):
    """Where one sequence stands in its constraint. Used by the engine's thread alone."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end of the sequence may follow."""
        ...

    def mask(self, logits: Logits) -> None:
        """Set the logits [vocab_size] of what must not come next to -inf, in place. Raises EngineError."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed. Raises EngineError."""
        ...

    def copy(self) -> ConstraintState:
        """Return the same state for another sequence to go on from."""
        ...


class Constraint(Protocol):
    """A compiled constraint on an answer's text; many sequences may start from one."""

    def start(self) -> ConstraintState:
        """Return the state of a sequence that has produced nothing yet."""
        ...


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate.

    ``prompt`` is the token ids of the whole prompt (at least one), ``max_tokens`` the most tokens
    to produce (prompt + max_tokens fit the context; 0 only scores the prompt, for
    ``prompt_logprobs``). ``stop`` are strings that end the text before their first appearance,
    ``stop_token_ids`` tokens that end it; ``include_stop`` keeps either in the text. End of
    sequence and stops of any kind count only after ``min_tokens``; ``ignore_eos`` takes the end of
    sequence for an ordinary token. ``logprobs`` asks for the log probability of every produced
    token and of that many best ones, ``prompt_logprobs`` the same of the prompt's. ``enforced``
    are the tokens to produce, whatever the model would choose (the last one ends the sequence).
    ``cache_scope`` names whose prompts may share computed prefixes with this one: it must never be
    shared between strangers. A higher ``priority`` is admitted first.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    enforced: tuple[int, ...] = ()
    cache_scope: str
    priority: int = 0


class Beams(msgspec.Struct, frozen=True, kw_only=True):
    """How wide a beam search is and when it ends; its score is Σ logprob / length ** length_penalty."""

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The log probability of a token where it stands, and the best ones there as (id, logprob), best first.

    The distribution is the one after bias, constraint, minimum and penalties, before temperature and
    truncation. ``rank`` is 1 for the most likely token; it is counted in prompts only (else 0).
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer: text that is final (no half character, no part of a stop string).

    ``token_ids`` are the tokens produced since the last delta, end-of-sequence included, and
    ``logprobs`` theirs when asked for. The first delta has ``prompt_logprobs`` when they were asked
    for: one for each prompt token, None for the first. The last delta has ``finish_reason``;
    ``stop_reason`` is the stop string or the stop token's id that matched, or None.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer; the fields are those of all its deltas together.

    ``cumulative_logprob`` is the sum of ``logprobs`` (0 when they were not asked for).
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    cumulative_logprob: float = 0.0


class Generation(Protocol):
    """A submitted request. Iterate it once, on the event loop that submitted it."""

    prompt_tokens: int
    # Tokens produced so far, end-of-sequence included.
    completion_tokens: int

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Return itself."""
        ...

    async def __anext__(self) -> Delta:
        """Return the next delta, the last one with a ``finish_reason``. Raises EngineError when the engine fails."""
        ...

    def cancel(self) -> None:
        """Stop the work within one step and free its place. Harmless when already finished."""
        ...


class BeamSearch(Protocol):
    """A submitted beam search."""

    prompt_tokens: int

    async def answers(self) -> list[Answer]:
        """Return the best ``width`` hypotheses, best first. Raises EngineError when the engine fails."""
        ...

    def cancel(self) -> None:
        """Stop the work within one step and free its places. Harmless when already finished."""
        ...


class Scheduler(Protocol):
    """Runs generation requests on one model."""

    @property
    def alive(self) -> bool:
        """Whether the thread that does the work is there."""
        ...

    @property
    def queue_depth(self) -> int:
        """Requests that wait for their turn."""
        ...

    @property
    def running_rows(self) -> int:
        """Sequences that are being worked on."""
        ...

    def submit(self, requests: list[GenerationRequest]) -> Sequence[Generation]:
        """Queue ``requests``, which count as one; call it on an event loop.

        Raises OverloadedError when the queue is full, InputRefusedError when one can never run.
        """
        ...

    def search(self, request: GenerationRequest, beams: Beams) -> BeamSearch:
        """Queue a beam search. Raises as ``submit`` does."""
        ...

    def close(self) -> None:
        """Stop the engine thread; running requests end with EngineError."""
        ...
