"""The choices of a request: from which sequences they come, and which of those are returned.

Choices are prompt-major: the i-th of n choices of prompt p has the index p * n + i.
"""

from __future__ import annotations

import abc
import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

import msgspec

from appliance.api.openai.generation.fields import GenerationFields
from appliance.api.openai.generation.merged import merged
from appliance.api.openai.generation.request import sequence_seed
from appliance.engines.generation.answers import best_of, whole
from appliance.engines.generation.contract import (
    Answer,
    Beams,
    BeamSearch,
    Delta,
    Generation,
    GenerationRequest,
    TokenLogprob,
)
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.logits.sampling import GREEDY_BELOW
from appliance.errors import OverloadedError

# A hypothesis' length to the power of more than this is no number any more.
MOST_LENGTH_PENALTY = 32.0
RETRY_SECONDS = 0.2

PromptLogprobs = list[TokenLogprob | None]


class Choices(Protocol):
    """The work of one request, submitted. Either take its ``answers`` or iterate its ``batches``."""

    # Whether deltas come while the work goes on; else all is known only at its end.
    streamed: bool
    # What was asked of the prompts themselves, by prompt; complete before the first delta of the prompt's choices.
    prompt_logprobs: dict[int, PromptLogprobs]

    async def answers(self) -> list[Answer]:
        """Return the choices in order. Raises EngineError."""
        ...

    def batches(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        """Yield deltas, each with its choice's index. Raises EngineError."""
        ...

    def cancel(self) -> None:
        """Stop all work within one step."""
        ...


def submit(engine: GenerationEngine, requests: list[GenerationRequest], fields: GenerationFields) -> Choices:
    """Submit the work for the prompts' ``requests``, in the way that ``fields`` ask for it.

    What must come out n times the same (greedy, enforced or empty answers) is produced once.
    Raises OverloadedError when the queue is full, InputRefusedError when a request can never run.
    """
    n, candidates = fields.choices, fields.candidates
    first = requests[0]
    if fields.use_beam_search and first.max_tokens > 0:
        return _BeamChoices(engine, requests, _beams(fields), n)
    if first.max_tokens == 0 and first.prompt_logprobs is None:
        return _SequenceChoices([_NothingProduced(len(request.prompt)) for request in requests], n, 1, first)
    if first.max_tokens == 0 or first.enforced or first.sampling.temperature < GREEDY_BELOW:
        return _SequenceChoices(list(engine.submit_all(requests)), n, 1, first)
    generations: list[Generation] = list(
        engine.submit_all(
            [
                _candidate(request, fields, prompt, candidate)
                for prompt, request in enumerate(requests)
                for candidate in range(candidates)
            ]
        )
    )
    if candidates > n:
        return _BestChoices(generations, n, candidates)
    return _SequenceChoices(generations, n, n, first)


class _SequenceChoices:
    """Every choice is a sequence of its own, or (``per_prompt`` 1) one sequence is all of a prompt's choices."""

    streamed = True

    def __init__(
        self, generations: list[Generation], n: int, per_prompt: int, request: GenerationRequest
    ) -> None:
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}
        self._generations = generations
        self._n = n
        self._per_prompt = per_prompt
        self._scored = request.prompt_logprobs is not None
        self._held: dict[int, list[tuple[int, Delta]]] = defaultdict(list)

    async def answers(self) -> list[Answer]:
        answers: list[Answer] = []
        for position, generation in enumerate(self._generations):
            answer = await whole(generation)
            if answer.prompt_logprobs is not None:
                self.prompt_logprobs[position // self._per_prompt] = answer.prompt_logprobs
            answers += [answer] * (self._n // self._per_prompt)
        return answers

    async def batches(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        async with aclosing(merged(self._generations)) as arriving:
            async for batch in arriving:
                spread: list[tuple[int, Delta]] = []
                for position, delta in batch:
                    self._spread(position, delta, spread)
                if spread:
                    yield spread

    def cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()

    def _spread(self, position: int, delta: Delta, spread: list[tuple[int, Delta]]) -> None:
        prompt, candidate = divmod(position, self._per_prompt)
        first = prompt * self._n + candidate
        items = [(first + copy, delta) for copy in range(self._n // self._per_prompt)]
        if self._scored and prompt not in self.prompt_logprobs:
            if delta.prompt_logprobs is None:
                self._held[prompt] += items
                return
            self.prompt_logprobs[prompt] = delta.prompt_logprobs
            items += self._held.pop(prompt, [])
        spread += items


class _WholeChoices(abc.ABC):
    """Choices that are known only when all work is done."""

    streamed = False

    def __init__(self) -> None:
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}

    @abc.abstractmethod
    async def answers(self) -> list[Answer]:
        """Return the answers of all choices, in their order."""

    async def batches(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        for index, answer in enumerate(await self.answers()):
            delta = Delta(
                text=answer.text,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                finish_reason=answer.finish_reason,
                stop_reason=answer.stop_reason,
            )
            yield [(index, delta)]

    def _take(self, prompt: int, ranked: list[Answer], n: int) -> list[Answer]:
        scores = next((each.prompt_logprobs for each in ranked if each.prompt_logprobs is not None), None)
        if scores is not None:
            self.prompt_logprobs[prompt] = scores
        return ranked[:n]


class _BestChoices(_WholeChoices):
    """The n likeliest of several sampled sequences."""

    def __init__(self, generations: list[Generation], n: int, candidates: int) -> None:
        super().__init__()
        self._generations = generations
        self._n = n
        self._candidates = candidates

    async def answers(self) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(self._generations), self._candidates):
            group = self._generations[start : start + self._candidates]
            # All of them: the one with the prompt's log probabilities may not be among the best.
            answers += self._take(start // self._candidates, await best_of(group, len(group)), self._n)
        return answers

    def cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()


class _BeamChoices(_WholeChoices):
    """The n best hypotheses of a beam search for each prompt, one search after the other."""

    def __init__(
        self, engine: GenerationEngine, requests: list[GenerationRequest], beams: Beams, n: int
    ) -> None:
        super().__init__()
        self._engine = engine
        self._requests = requests
        self._beams = beams
        self._n = n
        self._cancelled = False
        # The first one decides whether there is room for the request.
        self._search: BeamSearch = engine.search(requests[0], beams)

    async def answers(self) -> list[Answer]:
        answers: list[Answer] = []
        for prompt, request in enumerate(self._requests):
            if prompt:
                self._search = await self._next_search(request)
            answers += self._take(prompt, await self._search.answers(), self._n)
        return answers

    def cancel(self) -> None:
        self._cancelled = True
        self._search.cancel()

    async def _next_search(self, request: GenerationRequest) -> BeamSearch:
        """The request was admitted as a whole: its later searches wait for room where a new one is refused."""
        while True:
            try:
                search = self._engine.search(request, self._beams)
            except OverloadedError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if self._cancelled:
                search.cancel()
            return search


class _NothingProduced:
    """A generation of no tokens, which needs no engine."""

    completion_tokens = 0

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        return Delta(text="", token_ids=[], finish_reason="length")

    def cancel(self) -> None:
        """Nothing runs."""


def _candidate(
    request: GenerationRequest, fields: GenerationFields, prompt: int, candidate: int
) -> GenerationRequest:
    """Return the request of one candidate: its own random stream, and the prompt's logprobs only once."""
    sampling = msgspec.structs.replace(request.sampling, seed=sequence_seed(fields.seed, prompt, candidate))
    return msgspec.structs.replace(
        request,
        sampling=sampling,
        logprobs=(request.logprobs or 0) if fields.candidates > fields.choices else request.logprobs,
        prompt_logprobs=None if candidate else request.prompt_logprobs,
    )


def _beams(fields: GenerationFields) -> Beams:
    penalty = 1.0 if fields.length_penalty is None else fields.length_penalty
    return Beams(
        width=fields.candidates,
        length_penalty=max(-MOST_LENGTH_PENALTY, min(penalty, MOST_LENGTH_PENALTY)),
        early_stopping=fields.early_stopping or False,
    )
