"""Deltas reach the event loop whole and in order; cancelling and failing end the iteration."""

from __future__ import annotations

import asyncio
import threading

import pytest

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Delta
from appliance.engines.generation.delivery import Outbox, TokenStream


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
