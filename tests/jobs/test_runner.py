"""Background jobs: submit, progress, result, failure, cancellation, close and start again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.errors import OverloadedError
from appliance.jobs import job as table
from appliance.jobs.errors import JobCancelledError, JobError, JobNotFoundError
from appliance.jobs.job import KEPT_JOBS, MAX_QUEUED
from appliance.jobs.runner import Handler, JobContext, JobRunner
from appliance.packs.errors import PackError
from appliance.storage.database import Database
from appliance.storage.errors import StorageError


class Slow:
    """A handler that runs until it is let go or cancelled."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        self.runs = 0

    def __call__(self, context: JobContext, _arguments: dict[str, Any]) -> str:
        self.runs += 1
        self.started.set()
        while not self.go.wait(0.01):
            if context.cancelled():
                raise JobCancelledError("stopped")
        return "finished"


async def begun(slow: Slow) -> None:
    assert await asyncio.to_thread(slow.started.wait, 10)


@pytest.fixture
def run(database: Database) -> Iterator[Callable[..., JobRunner]]:
    runners: list[JobRunner] = []

    def start(**handlers: Handler) -> JobRunner:
        runner = JobRunner(database, handlers)
        runner.start()
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        runner.close()


async def test_a_job_runs_and_its_result_is_kept(run: Callable[..., JobRunner]) -> None:
    runner = run(add=lambda _, arguments: {"sum": arguments["a"] + arguments["b"]})
    number = await runner.submit("add", {"a": 2, "b": 3})
    assert await runner.wait(number) == {"sum": 5}
    job = await runner.get(number)
    assert (job.state, job.result, job.error, job.attempts) == ("done", {"sum": 5}, None, 1)
    assert job.arguments == {"a": 2, "b": 3}
    assert await runner.wait(number) == {"sum": 5}


async def test_jobs_run_in_order_one_at_a_time(run: Callable[..., JobRunner]) -> None:
    order: list[int] = []
    runner = run(note=lambda _, arguments: order.append(arguments["n"]))
    numbers = [await runner.submit("note", {"n": n}) for n in range(20)]
    await asyncio.gather(*(runner.wait(number) for number in numbers))
    assert order == list(range(20))
    assert [job.id for job in await runner.list()] == sorted(numbers, reverse=True)


async def test_progress_reaches_the_store_and_those_who_wait(run: Callable[..., JobRunner]) -> None:
    gate = threading.Event()

    def count(context: JobContext, _: dict[str, Any]) -> None:
        gate.wait(10)
        for done in range(10_001):
            context.progress(done, 10_000)

    runner = run(count=count)
    number = await runner.submit("count", {})
    seen: list[tuple[int, int]] = []
    waiting = asyncio.create_task(runner.wait(number, lambda done, total: seen.append((done, total))))
    await asyncio.sleep(0)  # let it register
    gate.set()
    await waiting
    assert seen[0] == (0, 10_000)
    assert seen[-1] == (10_000, 10_000)
    assert len(seen) < 1000  # throttled
    job = await runner.get(number)
    assert (job.progress_done, job.progress_total) == (10_000, 10_000)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PackError("model.onnx is damaged"), "model.onnx is damaged"),
        (RuntimeError("secret"), "internal error"),
    ],
)
async def test_a_failing_job_says_why_and_the_next_one_runs(
    run: Callable[..., JobRunner], error: Exception, words: str
) -> None:
    def fail(_: JobContext, __: dict[str, Any]) -> None:
        raise error

    runner = run(fail=fail, fine=lambda _, __: 1)
    number = await runner.submit("fail", {})
    with pytest.raises(JobError, match=words):
        await runner.wait(number)
    job = await runner.get(number)
    assert job.state == "failed"
    assert "secret" not in str(job.error)
    assert await runner.wait(await runner.submit("fine", {})) == 1


async def test_a_result_that_is_no_json_fails_the_job(run: Callable[..., JobRunner]) -> None:
    runner = run(odd=lambda _, __: threading.Lock(), fine=lambda _, __: 1)
    with pytest.raises(JobError, match="internal error"):
        await runner.wait(await runner.submit("odd", {}))
    assert await runner.wait(await runner.submit("fine", {})) == 1


async def test_a_handler_that_cancels_itself_does_not_run_forever(run: Callable[..., JobRunner]) -> None:
    def stop(_: JobContext, __: dict[str, Any]) -> None:
        raise JobCancelledError("I stop")

    runner = run(stop=stop)
    with pytest.raises(JobError, match="I stop"):
        await runner.wait(await runner.submit("stop", {}))


async def test_cancelling_a_running_job(run: Callable[..., JobRunner]) -> None:
    slow = Slow()
    runner = run(slow=slow)
    number = await runner.submit("slow", {})
    await begun(slow)
    waiting = asyncio.create_task(runner.wait(number))
    assert (await runner.cancel(number)).cancel_requested
    with pytest.raises(JobCancelledError):
        await waiting
    assert (await runner.get(number)).state == "cancelled"


async def test_cancelling_a_queued_job_means_it_never_runs(run: Callable[..., JobRunner]) -> None:
    slow = Slow()
    runner = run(slow=slow)
    first, second = await runner.submit("slow", {}), await runner.submit("slow", {})
    await begun(slow)
    waiting = asyncio.create_task(runner.wait(second))
    assert (await runner.cancel(second)).state == "cancelled"
    with pytest.raises(JobCancelledError):
        await waiting
    slow.go.set()
    assert await runner.wait(first) == "finished"
    assert (await runner.cancel(first)).state == "done"
    assert slow.runs == 1


async def test_closing_gives_the_job_back_and_the_next_start_runs_it(run: Callable[..., JobRunner]) -> None:
    slow = Slow()
    runner = run(slow=slow)
    number = await runner.submit("slow", {})
    await begun(slow)
    waiting = asyncio.create_task(runner.wait(number))
    await asyncio.sleep(0)
    await asyncio.to_thread(runner.close)
    with pytest.raises(JobError, match="next start"):
        await waiting
    job = await runner.get(number)
    assert (job.state, job.attempts) == ("queued", 0)
    slow.go.set()
    again = run(slow=slow)
    assert await again.wait(number) == "finished"
    assert (await again.get(number)).attempts == 1


async def test_unknown_kinds_and_numbers(run: Callable[..., JobRunner], database: Database) -> None:
    runner = run()
    with pytest.raises(JobError, match="unknown kind"):
        await runner.submit("mine", {})
    for ask in (runner.get, runner.cancel, runner.wait):
        with pytest.raises(JobNotFoundError):
            await ask(17)
    # A job of another release: it fails with words and does not stop the others.
    number = await database.write(lambda db: table.insert(db, "from-the-future", {}))
    later = run()
    with pytest.raises(JobError, match="does not know jobs of kind"):
        await later.wait(number)


async def test_too_many_waiting_jobs_are_refused_and_old_ones_forgotten(
    run: Callable[..., JobRunner], database: Database
) -> None:
    for _ in range(MAX_QUEUED):
        last = await database.write(lambda db: table.insert(db, "fine", {}))
    runner = JobRunner(database, {"fine": lambda _, __: 1})
    with pytest.raises(OverloadedError):
        await runner.submit("fine", {})
    started = run(fine=lambda _, __: 1)
    assert await started.wait(last) == 1
    await database.write(
        lambda db: db.execute("UPDATE sqlite_sequence SET seq = seq + ?", [KEPT_JOBS]).close()
    )
    newest = await started.submit("fine", {})
    assert await started.wait(newest) == 1
    assert [job.id for job in await started.list()] == [newest]


async def test_a_store_that_fails_for_a_while_loses_no_result(
    run: Callable[..., JobRunner], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.jobs.runner.RETRY_SECONDS", 0.01)
    failures = iter(range(3))
    finish = table.finish

    def failing(*arguments: Any) -> None:
        if next(failures, None) is not None:
            raise StorageError("the disk is full")
        finish(*arguments)

    monkeypatch.setattr(table, "finish", failing)
    runner = run(fine=lambda _, __: 1)
    assert await runner.wait(await runner.submit("fine", {})) == 1
