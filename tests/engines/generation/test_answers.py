"""Whole answers are the sum of their deltas; the best of several are those of the largest sum."""

from __future__ import annotations

import asyncio

import pytest

from appliance.engines.errors import EngineError
from appliance.engines.generation.answers import best_of, joined, whole
from appliance.engines.generation.contract import Delta, TokenLogprob
from appliance.engines.generation.scheduling.delivery import Outbox, TokenStream

SCORES = [None, TokenLogprob(7, -2.0)]


def piece(text: str, value: float, **fields: object) -> Delta:
    return Delta(text=text, token_ids=[len(text)], logprobs=[TokenLogprob(len(text), value)], **fields)  # type: ignore[arg-type]


def ended(text: str, value: float) -> TokenStream:
    """A stream whose only delta has arrived."""
    stream, outbox = open_stream(), Outbox()
    outbox.post(stream, piece(text, value, finish_reason="length"))
    outbox.flush()
    return stream


def open_stream() -> TokenStream:
    return TokenStream(1, lambda: None)


def test_an_answer_is_all_its_deltas() -> None:
    first = piece("a", -0.5, prompt_logprobs=SCORES)
    answer = joined([first, piece("bc", -0.25), piece("", -1.0, finish_reason="stop", stop_reason=5)])
    assert (answer.text, answer.token_ids, answer.cumulative_logprob) == ("abc", [1, 2, 0], -1.75)
    assert [each.logprob for each in answer.logprobs] == [-0.5, -0.25, -1.0]
    assert (answer.prompt_logprobs, answer.finish_reason, answer.stop_reason) == (SCORES, "stop", 5)


def test_without_log_probabilities_their_sum_is_a_float_zero() -> None:
    answer = joined([Delta(text="a", token_ids=[1], finish_reason="length")])
    assert repr(answer.cumulative_logprob) == "0.0"


@pytest.mark.parametrize("deltas", [[], [piece("a", -1.0)]])
def test_an_answer_without_its_end_was_cancelled(deltas: list[Delta]) -> None:
    with pytest.raises(EngineError, match="cancelled") as failed:
        joined(deltas)
    assert failed.value.status == 503


async def test_a_stream_that_is_cancelled_while_it_is_read_is_an_error() -> None:
    stream = open_stream()
    reading = asyncio.ensure_future(whole(stream))
    await asyncio.sleep(0)
    stream.cancel()
    with pytest.raises(EngineError, match="cancelled"):
        await reading


async def test_the_best_come_first_and_the_earlier_of_equals() -> None:
    streams = [ended(*each) for each in (("a", -3.0), ("b", -1.0), ("c", -2.0), ("d", -1.0))]
    assert [answer.text for answer in await best_of(list(streams), 3)] == ["b", "d", "c"]


async def test_one_failure_cancels_the_others() -> None:
    good, bad, outbox = open_stream(), open_stream(), Outbox()
    outbox.post(bad, EngineError("gone"))
    outbox.flush()
    with pytest.raises(EngineError, match="gone"):
        await best_of([good, bad], 1)
    assert good.cancelled


async def test_giving_up_cancels_all() -> None:
    streams = [open_stream(), open_stream()]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(best_of(list(streams), 1), 0.001)
    assert all(stream.cancelled for stream in streams)
