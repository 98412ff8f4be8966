"""Waiting on the event loop for something that another thread brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop away until ``condition`` holds; the test's own time limit is the bound."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)
