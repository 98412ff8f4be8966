"""The service as the manager sees it: ready once it can serve, alive while it can, and in words how it goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from appliance.errors import ApplianceError
from appliance.service.notify import Notifier

log = logging.getLogger(__name__)

# How often the progress of loading is looked at, and how long all of it may take.
LOOK_EVERY_SECONDS = 0.05
LONGEST_LOADING_SECONDS = 3600.0
STATUS_EVERY_SECONDS = 10.0

Check = Callable[[], Awaitable[None]]
# How many models there are, are being loaded, and are broken.
Models = Callable[[], tuple[int, int, int]]


class Presence:
    """Tells the manager behind ``notifier``; ``answers`` raises ApplianceError while the socket does not."""

    def __init__(self, notifier: Notifier, answers: Check, watchdog_seconds: float | None = None) -> None:
        self._notifier = notifier
        self._answers = answers
        self._watchdog_seconds = watchdog_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self, models: Models, alive: Check) -> None:
        """Begin. ``alive`` raises ApplianceError unless the store answers and every engine's thread lives."""
        if self._notifier.heard:
            self._task = asyncio.create_task(self._run(models, alive), name="presence")

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, models: Models, alive: Check) -> None:
        await self._become_ready(models, alive)
        pace = STATUS_EVERY_SECONDS if self._watchdog_seconds is None else self._watchdog_seconds / 3
        said = ""
        while True:
            if self._watchdog_seconds is not None and await self._lives(alive, pace):
                self._notifier.alive()
            # Models come and go while the service runs.
            text = serving(*models())
            if text != said:
                self._notifier.status(text)
                said = text
            await asyncio.sleep(pace)

    async def _become_ready(self, models: Models, alive: Check) -> None:
        give_up = time.monotonic() + LONGEST_LOADING_SECONDS
        extended, said = 0.0, ""
        while True:
            total, loading, broken = models()
            text = f"loading models: {total - loading} of {total}" if loading else "opening the port"
            if text != said or time.monotonic() > extended + STATUS_EVERY_SECONDS:
                if time.monotonic() < give_up:
                    self._notifier.extend()
                extended, said = time.monotonic(), text
                self._notifier.status(text)
            if not loading:
                try:
                    await self._answers()
                    await alive()
                except ApplianceError as error:
                    log.info("not ready yet: %s", error.message)
                else:
                    self._notifier.ready(serving(total, loading, broken))
                    return
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _lives(self, alive: Check, most_seconds: float) -> bool:
        try:
            async with asyncio.timeout(most_seconds):
                await alive()
        except TimeoutError:
            log.error("the watchdog is not fed: no answer in %.0f s", most_seconds)  # noqa: TRY400
        except ApplianceError as error:
            log.error("the watchdog is not fed: %s", error.message)  # noqa: TRY400 - the text says it all
        else:
            return True
        return False


def serving(total: int, loading: int, broken: int) -> str:
    """Return the line of a service that serves."""
    ready = total - loading - broken
    parts = [f"serving {ready} of {total} models" if ready != total else f"serving {total} models"]
    parts += [f"{loading} being loaded"] * bool(loading) + [f"{broken} cannot be loaded"] * bool(broken)
    return ", ".join(parts)
