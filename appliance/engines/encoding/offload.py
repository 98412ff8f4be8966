"""Threads beside the event loop for work that holds it up: tokenising, checking token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from appliance.engines.errors import EngineError

WORKERS = 4

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """A few threads, so that a long piece of work does not hold up a short one."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(WORKERS, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns, or raise what it raises. Raises EngineError when closed."""
        try:
            future = self._thread.submit(function, *args, **kwargs)
        except RuntimeError as error:  # the executor's way to say that it was shut down
            raise EngineError("The model is not loaded any more.", status=503) from error
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more work; what was taken is finished, so that nobody waits for ever."""
        self._thread.shutdown(wait=False)
