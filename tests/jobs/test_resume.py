"""kill -9 while a job runs: it runs again at the next start, but not for ever, and not when cancelled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from appliance.jobs import job as table
from appliance.jobs.job import MAX_ATTEMPTS, Job
from appliance.jobs.runner import JobRunner
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


def kill_while_running(path: Path, mode: str) -> None:
    """Start the program, wait until its job runs, kill it."""
    command = [sys.executable, "-m", "tests.jobs.running", str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"working\n"
        running.kill()


def read(path: Path, job_id: int = 1) -> Job:
    database = Database.open(path, MIGRATIONS)
    try:
        return database.read_sync(lambda db: table.select(db, job_id))
    finally:
        database.close()


async def test_a_killed_job_is_resumed_and_given_up_after_three_attempts(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    kill_while_running(path, "submit")
    for attempt in range(1, MAX_ATTEMPTS):
        job = read(path)
        assert (job.state, job.attempts, job.progress_done) == ("running", attempt, 1)
        kill_while_running(path, "resume")
    database = Database.open(path, MIGRATIONS)
    runner = JobRunner(database, {"slow": lambda _, __: "never called"})
    runner.start()
    job = await runner.get(1)
    assert job.state == "failed"
    assert "3 times while this job ran" in str(job.error)
    runner.close()
    database.close()


async def test_a_killed_job_finishes_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    kill_while_running(path, "submit")
    database = Database.open(path, MIGRATIONS)
    runner = JobRunner(database, {"slow": lambda _, arguments: arguments["word"]})
    runner.start()
    assert await runner.wait(1) == "working"
    assert (await runner.get(1)).attempts == 2
    runner.close()
    database.close()


def test_a_cancellation_survives_the_crash(tmp_path: Path) -> None:
    path = tmp_path / "appliance.db"
    kill_while_running(path, "submit")
    database = Database.open(path, MIGRATIONS)
    database.write_sync(lambda db: table.request_cancel(db, 1))
    runner = JobRunner(database, {"slow": lambda _, __: 1})
    runner.start()
    runner.close()
    database.close()
    job = read(path)
    assert (job.state, job.attempts) == ("cancelled", 1)
