"""The batcher alone, with a forward pass that records what it was given."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from appliance.engines.cores import Cores
from appliance.engines.encoding.batching import Batcher
from appliance.engines.encoding.forward import Floats, TokenSequence
from appliance.engines.errors import EngineError
from tests.engines.encoding.waiting import until


def sequence(length: int, value: int = 1) -> TokenSequence:
    return TokenSequence(np.full(length, value, dtype=np.int64))


class Recorder:
    """A forward pass that returns each sequence's first id and length, and fails on the id 13."""

    def __init__(self) -> None:
        self.batches: list[list[TokenSequence]] = []

    def __call__(self, batch: list[TokenSequence]) -> Floats:
        self.batches.append(batch)
        if any(s.ids[0] == 13 for s in batch):
            raise ValueError("thirteen")
        return np.array([[s.ids[0], len(s.ids)] for s in batch], dtype=np.float32)


async def test_requests_share_batches_and_get_their_own_rows_in_order() -> None:
    cores, forward = Cores(), Recorder()
    batcher = Batcher(forward, cores, max_queue_tokens=10_000, batch_tokens=64)
    try:
        with cores.lease():
            tasks = [
                asyncio.create_task(batcher.run([sequence(4 + k, value=20 * n + k + 20) for k in range(5)]))
                for n in range(6)
            ]
            await until(lambda: batcher.queued_tokens >= 6 * 30)
        results = await asyncio.gather(*tasks)
        for n, rows in enumerate(results):
            assert rows.tolist() == [[20 * n + k + 20, 4 + k] for k in range(5)]
        assert len(forward.batches) < 30
        for batch in forward.batches:
            longest = max(len(s.ids) for s in batch)
            assert len(batch) == 1 or longest * len(batch) <= 64
            assert sum(len(s.ids) for s in batch) >= 0.75 * longest * len(batch)
    finally:
        await asyncio.to_thread(batcher.close)


async def test_a_short_request_overtakes_the_rest_of_a_long_one() -> None:
    cores, forward = Cores(), Recorder()
    batcher = Batcher(forward, cores, max_queue_tokens=100_000, batch_tokens=64)
    try:
        with cores.lease():
            long = asyncio.create_task(batcher.run([sequence(64, value=1)] * 50))
            await until(lambda: batcher.queued_tokens > 0)
            short = asyncio.create_task(batcher.run([sequence(8, value=2)]))
            await until(lambda: batcher.queued_tokens >= 50 * 64 + 8)
        await asyncio.gather(long, short)
        position = next(n for n, batch in enumerate(forward.batches) if batch[0].ids[0] == 2)
        assert position <= 2
    finally:
        await asyncio.to_thread(batcher.close)


async def test_a_higher_priority_is_served_first() -> None:
    cores, forward = Cores(), Recorder()
    batcher = Batcher(forward, cores, max_queue_tokens=100_000, batch_tokens=8)
    try:
        with cores.lease():
            low = asyncio.create_task(batcher.run([sequence(8, value=1)] * 4))
            await until(lambda: batcher.queued_tokens >= 32)
            high = asyncio.create_task(batcher.run([sequence(8, value=2)] * 4, priority=5))
            await until(lambda: batcher.queued_tokens >= 64)
        await asyncio.gather(low, high)
        assert [int(batch[0].ids[0]) for batch in forward.batches] == [2] * 4 + [1] * 4
    finally:
        await asyncio.to_thread(batcher.close)


async def test_a_failing_batch_fails_its_requests_and_nothing_else() -> None:
    forward = Recorder()
    batcher = Batcher(forward, Cores(), max_queue_tokens=10_000, batch_tokens=8)
    try:
        with pytest.raises(EngineError, match="failed on this request"):
            await batcher.run([sequence(8, value=13)] * 3)
        assert batcher.queued_tokens == 0
        assert (await batcher.run([sequence(8, value=7)])).tolist() == [[7, 8]]
    finally:
        await asyncio.to_thread(batcher.close)


async def test_an_idle_batcher_waits_for_nothing() -> None:
    forward = Recorder()
    batcher = Batcher(forward, Cores(), max_queue_tokens=10_000)
    try:
        for n in range(20):
            await batcher.run([sequence(3, value=n + 20)])
        assert [len(batch) for batch in forward.batches] == [1] * 20
    finally:
        await asyncio.to_thread(batcher.close)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 4), np.float32),
        np.zeros(2, np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 4, 1), np.float32),
        np.full((2, 4), np.nan, np.float32),
    ],
)
async def test_rows_that_do_not_fit_the_batch_fail_it_and_nothing_else(wrong: Floats) -> None:
    def forward(batch: list[TokenSequence]) -> Floats:
        return wrong if len(batch) == 2 else np.ones((len(batch), 4), np.float32)

    batcher = Batcher(forward, Cores(), max_queue_tokens=1000, width=4)
    try:
        with pytest.raises(EngineError, match="failed on this request"):
            await batcher.run([sequence(3), sequence(3)])
        assert (await batcher.run([sequence(3)])).shape == (1, 4)
        assert batcher.queued_tokens == 0
    finally:
        await asyncio.to_thread(batcher.close)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_dies_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batcher, "_take", lambda _: 1 / 0)
    batcher = Batcher(Recorder(), Cores(), max_queue_tokens=1000)
    with pytest.raises(EngineError, match="does not work"):
        await batcher.run([sequence(3)])
    with pytest.raises(EngineError):
        await batcher.run([sequence(3)])
    await asyncio.to_thread(batcher.close)
