"""Dynamic batching: sequences of many requests share forward passes of one model.

One thread runs batches back to back and waits for nothing while there is work. Requests are served
by start-time fair queueing (Goyal, Vin and Cheng, 1996, weights all equal): a sequence's turn is
where its request's service so far would put it, so a request of thousands of sequences delays a
short one by a batch or so. A batch is closed by its padded tokens and takes sequences of similar
length, because padding is computed like text.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
from collections.abc import Callable

import numpy as np

from appliance.engines.cores import Cores
from appliance.engines.encoding.forward import Floats, TokenSequence
from appliance.engines.errors import EngineError
from appliance.errors import OverloadedError

log = logging.getLogger(__name__)

# Padded tokens of one run. More does not raise the throughput of a CPU (measured), but it lengthens
# the time that the cores are not free for others.
BATCH_TOKENS = 512
# How far the batcher looks down the queue for sequences of similar length.
LOOKAHEAD = 64
# Share of a batch that may be padding.
MAX_PADDING = 0.25

Forward = Callable[[list[TokenSequence]], Floats]


class _Request:
    """Sequences that belong together: where their results go, and how many are missing."""

    def __init__(self, count: int, tokens: int, priority: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Floats] = self.loop.create_future()
        self.rows: list[Floats | None] = [None] * count
        self.missing = count
        self.waiting_tokens = tokens
        self.priority = priority
        self.dropped = False

    def resolve(self, result: Floats | EngineError) -> None:
        """Deliver on the request's loop; a loop that is gone has nobody left to tell."""
        try:
            self.loop.call_soon_threadsafe(self._set, result)
        except RuntimeError:
            log.debug("the event loop of an encoding request is closed")

    def _set(self, result: Floats | EngineError) -> None:
        if self.done.done():
            return
        if isinstance(result, EngineError):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class _Item:
    """One sequence in the queue; ``order`` is (-priority, fair start, arrival)."""

    __slots__ = ("index", "order", "request", "sequence")

    def __init__(
        self, order: tuple[int, float, int], request: _Request, index: int, sequence: TokenSequence
    ) -> None:
        self.order = order
        self.request = request
        self.index = index
        self.sequence = sequence

    def __lt__(self, other: _Item) -> bool:
        return self.order < other.order

    def __len__(self) -> int:
        return len(self.sequence.ids)


class Batcher:
    """Runs ``forward`` (B sequences -> float32 [B, W]) for sequences of many requests at once."""

    def __init__(
        self,
        forward: Forward,
        cores: Cores,
        *,
        max_queue_tokens: int,
        batch_tokens: int = BATCH_TOKENS,
        width: int | None = None,
    ) -> None:
        """``width`` is the W that every row must have; None takes any."""
        self._forward = forward
        self._width = width
        self._cores = cores
        self._max_queue_tokens = max_queue_tokens
        self._batch_tokens = batch_tokens
        self._condition = threading.Condition()
        self._queue: list[_Item] = []
        self._queued_tokens = 0
        self._clock = 0.0
        self._arrival = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that does the work is there."""
        return self._thread.is_alive()

    @property
    def queued_tokens(self) -> int:
        """Return how many tokens wait for their run."""
        return self._queued_tokens

    async def run(self, sequences: list[TokenSequence], *, priority: int = 0) -> Floats:
        """Return ``forward``'s row of each sequence, in order, float32 [len(sequences), W].

        When the caller is cancelled, sequences that have not been run yet are dropped. Raises
        OverloadedError when too much is queued, EngineError when the model fails or is closed.
        """
        request = self._submit(sequences, priority)
        try:
            return await request.done
        except asyncio.CancelledError:
            self._drop(request)
            raise

    def close(self) -> None:
        """End the thread after the batch it runs; what still waits fails with EngineError."""
        self._end(EngineError("The model was unloaded before the request was finished."))
        self._thread.join()

    def _end(self, error: EngineError) -> None:
        with self._condition:
            self._closed = True
            left = {item.request for item in self._queue}
            self._queue.clear()
            self._queued_tokens = 0
            self._condition.notify()
        for request in left:
            request.resolve(error)

    def _submit(self, sequences: list[TokenSequence], priority: int) -> _Request:
        tokens = sum(len(sequence.ids) for sequence in sequences)
        request = _Request(len(sequences), tokens, priority)
        # Neighbours of similar length: a long request then fills its batches without padding.
        by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
        with self._condition:
            if self._closed:
                raise EngineError("The model is not loaded any more.", status=503)
            # A request larger than the whole bound is served when it is alone.
            if self._queued_tokens and self._queued_tokens + tokens > self._max_queue_tokens:
                raise OverloadedError("The model has too much work queued. Please retry later.")
            start = self._clock
            for index in by_length:
                order = (-priority, start, next(self._arrival))
                heapq.heappush(self._queue, _Item(order, request, index, sequences[index]))
                start += len(sequences[index].ids)
            self._queued_tokens += tokens
            self._condition.notify()
        return request

    def _drop(self, request: _Request) -> None:
        with self._condition:
            if not request.dropped:
                request.dropped = True
                self._queued_tokens -= request.waiting_tokens
                request.waiting_tokens = 0
                self._queue = [item for item in self._queue if item.request is not request]
                heapq.heapify(self._queue)

    def _work(self) -> None:
        try:
            self._serve()
        finally:  # nobody waits for a thread that is gone
            self._end(EngineError("The model does not work any more."))

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                # Taken only once the cores are ours, so that late arrivals still join the batch.
                priority = self._queue[0].request.priority
            with self._cores.lease(priority):
                with self._condition:
                    batch = self._take()
                if batch:
                    self._run(batch)

    def _take(self) -> list[_Item]:
        """Take the next batch from the queue: its first sequence and the most similar of those behind it."""
        window = [heapq.heappop(self._queue) for _ in range(min(LOOKAHEAD, len(self._queue)))]
        if not window:
            return []
        first, rest = window[0], window[1:]
        self._clock = max(self._clock, first.order[1])
        batch, longest, tokens = [first], len(first), len(first)
        left: list[_Item] = []
        for item in sorted(rest, key=lambda item: abs(len(item) - len(first))):
            widest = max(longest, len(item))
            padded = widest * (len(batch) + 1)
            if padded <= self._batch_tokens and padded - tokens - len(item) <= MAX_PADDING * padded:
                batch.append(item)
                longest, tokens = widest, tokens + len(item)
            else:
                left.append(item)
        for item in left:
            heapq.heappush(self._queue, item)
        for item in batch:
            item.request.waiting_tokens -= len(item)
        self._queued_tokens -= tokens
        return batch

    def _run(self, batch: list[_Item]) -> None:
        try:
            rows = self._forward([item.sequence for item in batch])
            self._check(rows, len(batch))
            for item, row in zip(batch, rows, strict=True):
                self._put(item, row)
        except Exception:  # whatever fails here belongs to the requests, not to the thread
            log.exception("an encoder batch of %d sequences failed", len(batch))
            for request in {item.request for item in batch}:
                self._drop(request)
                request.resolve(EngineError("The model failed on this request."))

    def _check(self, rows: Floats, count: int) -> None:
        if rows.ndim != 2 or len(rows) != count or self._width not in (None, rows.shape[1]):
            raise EngineError(f"The model gave an array of shape {rows.shape} for {count} sequences.")
        if not np.isfinite(rows).all():
            raise EngineError("The model gave values that are not numbers.")

    def _put(self, item: _Item, row: Floats) -> None:
        request = item.request
        request.rows[item.index] = row
        request.missing -= 1
        if not request.missing:
            request.resolve(np.stack([row for row in request.rows if row is not None]))
