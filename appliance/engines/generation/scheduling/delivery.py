"""From the engine thread to the event loops: deltas and answers out, cancellation in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from appliance.engines.errors import EngineError
from appliance.engines.generation.answers import merged
from appliance.engines.generation.contract import Answer, Delta

logger = logging.getLogger(__name__)

Item = Delta | list[Answer] | EngineError


class Receiver(Protocol):
    """The caller's end of a request, as the engine sees it."""

    loop: asyncio.AbstractEventLoop
    cancelled: bool

    def receive(self, item: Item) -> None:
        """Take what the engine made, or its failure; called on ``loop``."""
        ...

    def abandon(self) -> None:
        """Cancel from the engine's thread, because ``loop`` is gone."""
        ...


class TokenStream:
    """The caller's end of one request: a ``Generation``.

    Iterate it on the event loop that made it. Deltas that arrived since the last one was taken
    come as one. Taking the next delta may be given up and tried again (``asyncio.wait_for``)
    without losing any.
    """

    def __init__(self, prompt_tokens: int, wake_engine: Callable[[], None]) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.loop = asyncio.get_running_loop()
        self.cancelled = False
        # Let go at the end: whoever keeps a finished stream does not keep the model.
        self._wake_engine: Callable[[], None] | None = wake_engine
        self._arrived: list[Delta] = []
        self._failure: EngineError | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Delta:
        while not self._arrived:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._ended or self.cancelled:
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta = merged(self._arrived)
        self._arrived = []
        self.completion_tokens += len(delta.token_ids)
        return delta

    def cancel(self) -> None:
        """Stop the work within one step; whoever waits for the next delta sees the end of the iteration."""
        if self._ended or self.cancelled:
            return
        self.cancelled = True
        wake_engine, self._wake_engine = self._wake_engine, None
        if wake_engine is not None:
            wake_engine()
        self._wake()

    def receive(self, item: Item) -> None:
        """Take a delta, or the failure that ends the stream; call it on the stream's event loop."""
        if self._ended:
            return
        if isinstance(item, Delta):
            self._arrived.append(item)
            self._ended = item.finish_reason is not None
        elif isinstance(item, EngineError):
            self._failure = item
            self._ended = True
        if self._ended:
            self._wake_engine = None
        self._wake()

    def abandon(self) -> None:
        """Cancel from the engine's thread, because the stream's loop is gone."""
        self.cancelled = True
        self._wake_engine = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class BeamAnswers:
    """The caller's end of one beam search: a ``BeamSearch``. Await its answers once."""

    def __init__(self, prompt_tokens: int, wake_engine: Callable[[], None]) -> None:
        self.prompt_tokens = prompt_tokens
        self.loop = asyncio.get_running_loop()
        self.cancelled = False
        self._wake_engine: Callable[[], None] | None = wake_engine
        self._result: asyncio.Future[list[Answer]] = self.loop.create_future()

    async def answers(self) -> list[Answer]:
        """Return the hypotheses, best first. Raises EngineError when the engine fails, CancelledError after cancel."""
        # Whoever gives up waiting has not cancelled the search yet: see ``cancel``.
        return await asyncio.shield(self._result)

    def cancel(self) -> None:
        """Stop the work within one step."""
        if self._result.done() or self.cancelled:
            return
        self.cancelled = True
        self._result.cancel()
        wake_engine, self._wake_engine = self._wake_engine, None
        if wake_engine is not None:
            wake_engine()

    def receive(self, item: Item) -> None:
        """Take the answers, or the failure that ends the search; call it on the search's event loop."""
        if self._result.done():
            return
        self._wake_engine = None
        if isinstance(item, EngineError):
            self._result.set_exception(item)
            self._result.exception()  # whoever gave up waiting is not to be warned about it
        elif isinstance(item, list):
            self._result.set_result(item)

    def abandon(self) -> None:
        """Cancel from the engine's thread, because the search's loop is gone."""
        self.cancelled = True
        self._wake_engine = None


class Outbox:
    """What one engine step produced; ``flush`` wakes each event loop once for all of it."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Receiver, Item]]] = {}

    def post(self, receiver: Receiver, item: Item) -> None:
        """Put ``item`` into the next flush."""
        self._items.setdefault(receiver.loop, []).append((receiver, item))

    def flush(self) -> None:
        """Hand everything over. The streams of a loop that is closed are cancelled: nobody reads them."""
        batches, self._items = self._items, {}
        for loop, items in batches.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except Exception as error:
                if not isinstance(error, RuntimeError):  # that is only a loop that is closed
                    logger.exception("an event loop does not take its deltas")
                for receiver, _ in items:
                    receiver.abandon()


def _deliver(items: list[tuple[Receiver, Item]]) -> None:
    for receiver, item in items:
        receiver.receive(item)
