"""Deltas put together, whole answers, and the best of several."""

from __future__ import annotations

import asyncio

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Answer, Delta, Generation, TokenLogprob


def merged(deltas: list[Delta]) -> Delta:
    """Put deltas that follow one another (at least one) together."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs: list[TokenLogprob] = []
    for delta in deltas:
        logprobs += delta.logprobs
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=logprobs,
        prompt_logprobs=deltas[0].prompt_logprobs,
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
    )


def joined(deltas: list[Delta]) -> Answer:
    """Put the deltas of a finished stream together. Raises EngineError when the last one is missing."""
    if not deltas or deltas[-1].finish_reason is None:
        raise EngineError("The generation was cancelled.", status=503)
    all_of_it = merged(deltas)
    return Answer(
        text=all_of_it.text,
        token_ids=all_of_it.token_ids,
        logprobs=all_of_it.logprobs,
        prompt_logprobs=all_of_it.prompt_logprobs,
        finish_reason=deltas[-1].finish_reason,
        stop_reason=all_of_it.stop_reason,
        cumulative_logprob=sum((each.logprob for each in all_of_it.logprobs), 0.0),
    )


async def whole(generation: Generation) -> Answer:
    """Read a stream to its end. Raises EngineError."""
    return joined([delta async for delta in generation])


async def best_of(generations: list[Generation], count: int) -> list[Answer]:
    """Read all streams and return the ``count`` answers of the largest cumulative log probability, best first.

    The requests must have asked for ``logprobs`` (0 is enough). Of equal ones the earlier is better.
    When one fails the others are cancelled, and its EngineError is raised.
    """
    try:
        answers = await asyncio.gather(*(whole(generation) for generation in generations))
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise
    return sorted(answers, key=lambda answer: -answer.cumulative_logprob)[:count]
