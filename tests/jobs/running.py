"""Run as a program: a store with one slow kind of job, to be killed by ``test_resume.py``.

``DATABASE submit`` queues a job that prints a line and then works without end; ``DATABASE resume``
only starts. Both end when the standard input does, without closing anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

from appliance.jobs.runner import JobContext, JobRunner
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


def work(context: JobContext, arguments: dict[str, Any]) -> None:
    """Say that it runs, and never end."""
    context.progress(1, 1)
    print(arguments["word"], flush=True)
    threading.Event().wait()


def main(path: str, mode: str) -> None:
    """Do what the module says."""
    runner = JobRunner(Database.open(Path(path), MIGRATIONS), {"slow": work})
    runner.start()
    if mode == "submit":
        asyncio.run(runner.submit("slow", {"word": "working"}))
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
