"""Several generations as one stream, in the order in which their deltas come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from appliance.engines.generation.contract import Delta, Generation


async def merged(generations: list[Generation]) -> AsyncGenerator[list[tuple[int, Delta]], None]:
    """Yield what has come since the last time: deltas, each with its generation's position.

    Raises what ends any of the generations.
    """
    if len(generations) == 1:
        async for only in generations[0]:
            yield [(0, only)]
        return
    queue: asyncio.Queue[tuple[int, Delta | None]] = asyncio.Queue()

    async def forward(position: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                queue.put_nowait((position, delta))
        finally:
            queue.put_nowait((position, None))

    tasks = [asyncio.create_task(forward(position, item)) for position, item in enumerate(generations)]
    running = len(tasks)
    try:
        while running:
            arrived = [await queue.get()]
            while not queue.empty():
                arrived.append(queue.get_nowait())
            deltas = [(position, delta) for position, delta in arrived if delta is not None]
            if deltas:
                yield deltas
            for position, delta in arrived:
                if delta is None:
                    running -= 1
                    await tasks[position]  # raises what ended this one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
