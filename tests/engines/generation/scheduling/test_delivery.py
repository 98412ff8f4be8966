"""Deltas reach the event loop whole and in order; cancelling and failing end the iteration."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Answer, Delta, TokenLogprob
from appliance.engines.generation.scheduling.delivery import BeamAnswers, Outbox, TokenStream


def nothing() -> None:
    """A wake-up that nobody needs."""


async def test_deltas_that_arrived_together_come_as_one() -> None:
    stream, outbox = TokenStream(3, nothing), Outbox()
    outbox.post(stream, Delta(text="a", token_ids=[1]))
    outbox.post(stream, Delta(text="b", token_ids=[2, 3], finish_reason="stop", stop_reason="x"))
    threading.Thread(target=outbox.flush).start()
    assert [delta async for delta in stream] == [
        Delta(text="ab", token_ids=[1, 2, 3], finish_reason="stop", stop_reason="x")
    ]
    assert (stream.prompt_tokens, stream.completion_tokens) == (3, 3)


async def test_giving_up_on_a_delta_loses_none() -> None:
    stream, outbox = TokenStream(1, nothing), Outbox()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.001)
    outbox.post(stream, Delta(text="a", token_ids=[1], finish_reason="length"))
    outbox.flush()
    assert (await anext(stream)).text == "a"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_cancelling_wakes_the_engine_once_and_ends_the_iteration() -> None:
    wakes: list[None] = []
    stream = TokenStream(1, lambda: wakes.append(None))
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    stream.cancel()
    stream.cancel()
    assert await waiting is None
    assert len(wakes) == 1


async def test_a_failure_is_raised_after_what_came_before_it() -> None:
    stream, outbox = TokenStream(1, nothing), Outbox()
    outbox.post(stream, Delta(text="a", token_ids=[1]))
    outbox.post(stream, EngineError("gone"))
    outbox.flush()
    assert (await anext(stream)).text == "a"
    with pytest.raises(EngineError, match="gone"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


def test_a_closed_loop_cancels_its_streams() -> None:
    async def make() -> TokenStream:
        return TokenStream(1, nothing)

    stream, outbox = asyncio.run(make()), Outbox()
    outbox.post(stream, Delta(text="a", token_ids=[1]))
    outbox.flush()
    assert stream.cancelled


class _Engine:
    def wake(self) -> None:
        """What a stream does to its engine."""


@pytest.mark.parametrize("ending", ["last delta", "failure", "cancel", "closed loop"])
async def test_a_finished_stream_that_is_kept_does_not_keep_the_engine(ending: str) -> None:
    engine = _Engine()
    watched = weakref.ref(engine)
    stream, outbox = TokenStream(1, engine.wake), Outbox()
    if ending == "cancel":
        stream.cancel()
    elif ending == "closed loop":
        stream.loop = asyncio.new_event_loop()
        stream.loop.close()
    outbox.post(
        stream,
        EngineError("gone") if ending == "failure" else Delta(text="a", token_ids=[1], finish_reason="stop"),
    )
    outbox.flush()
    await asyncio.sleep(0)
    del engine
    gc.collect()
    assert watched() is None


async def test_a_loop_that_takes_nothing_does_not_stop_the_others() -> None:
    class Broken(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *_: object, **__: object) -> asyncio.Handle:
            raise ValueError("broken")

    bad, good, outbox = TokenStream(1, nothing), TokenStream(1, nothing), Outbox()
    bad.loop = Broken()
    for stream in (bad, good):
        outbox.post(stream, Delta(text="a", token_ids=[1], finish_reason="stop"))
    outbox.flush()
    bad.loop.close()
    assert bad.cancelled
    assert (await anext(good)).text == "a"


def found(text: str) -> Answer:
    return Answer(text=text, token_ids=[1], finish_reason="stop")


async def test_a_search_gives_its_answers() -> None:
    search, outbox = BeamAnswers(3, nothing), Outbox()
    outbox.post(search, [found("a"), found("b")])
    threading.Thread(target=outbox.flush).start()
    assert [answer.text for answer in await search.answers()] == ["a", "b"]
    search.cancel()
    assert (search.cancelled, search.prompt_tokens) == (False, 3)


async def test_a_search_that_fails_raises_its_error() -> None:
    search, outbox = BeamAnswers(1, nothing), Outbox()
    for error in ("gone", "gone again"):  # of all its hypotheses; only the first is told
        outbox.post(search, EngineError(error))
    outbox.flush()
    with pytest.raises(EngineError, match=r"gone$"):
        await search.answers()


async def test_cancelling_a_search_wakes_the_engine_once() -> None:
    wakes: list[None] = []
    search, outbox = BeamAnswers(1, lambda: wakes.append(None)), Outbox()
    waiting = asyncio.ensure_future(search.answers())
    await asyncio.sleep(0)
    search.cancel()
    search.cancel()
    outbox.post(search, [found("too late")])
    outbox.flush()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (search.cancelled, len(wakes)) == (True, 1)


async def test_a_caller_that_is_cancelled_while_it_waits_can_still_cancel_the_search() -> None:
    wakes: list[None] = []
    search = BeamAnswers(1, lambda: wakes.append(None))

    async def caller() -> None:
        try:
            await search.answers()
        finally:
            search.cancel()

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (search.cancelled, len(wakes)) == (True, 1)


async def test_giving_up_on_a_search_loses_nothing() -> None:
    search, outbox = BeamAnswers(1, nothing), Outbox()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(search.answers(), 0.001)
    outbox.post(search, [found("a")])
    outbox.flush()
    assert [answer.text for answer in await search.answers()] == ["a"]


async def test_log_probabilities_of_deltas_that_arrived_together_stay_in_order() -> None:
    stream, outbox = TokenStream(2, nothing), Outbox()
    scores = [None, TokenLogprob(5, -1.0)]
    for place in range(3):
        outbox.post(
            stream,
            Delta(
                text="x",
                token_ids=[place],
                logprobs=[TokenLogprob(place, -0.5)],
                prompt_logprobs=scores if not place else None,
                finish_reason="length" if place == 2 else None,
            ),
        )
    outbox.flush()
    (delta,) = [delta async for delta in stream]
    assert [each.token_id for each in delta.logprobs] == delta.token_ids == [0, 1, 2]
    assert delta.prompt_logprobs == scores
