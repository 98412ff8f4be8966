"""Workers of the tests' own kind, through the real supervisor and the real child."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.workers.protocol import Limits
from appliance.workers.supervisor import WorkerProcess

KINDS = Path(__file__).with_name("kinds.py")
COMMAND = [sys.executable, "-P", str(KINDS)]

MakeWorker = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def make_worker() -> AsyncIterator[MakeWorker]:
    """Return a maker of started workers; they are stopped after the test."""
    made: list[WorkerProcess] = []

    async def make(arguments: object = None, **settings: Any) -> WorkerProcess:
        settings.setdefault("limits", Limits())
        worker = WorkerProcess("test", arguments, command=COMMAND, **settings)
        await worker.start()
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.stop()


@pytest.fixture
async def worker(make_worker: MakeWorker) -> WorkerProcess:
    """Return one started worker with the defaults."""
    return await make_worker()
