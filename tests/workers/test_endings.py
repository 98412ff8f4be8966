"""Crashes, cancellation, deadlines: what ends a job or its worker, and what comes after."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from appliance.workers.errors import WorkerStoppedError, WorkerTimeoutError
from appliance.workers.link import spawn
from appliance.workers.supervisor import WorkerProcess
from tests.workers.conftest import COMMAND, MakeWorker

SECONDS = 30.0


async def alive(worker: WorkerProcess) -> bool:
    answer = await worker.call({"do": "echo", "value": 7}, deadline_seconds=SECONDS)
    return bool(msgspec.msgpack.decode(answer) == 7)


async def begin(worker: WorkerProcess, do: str, seconds: float = SECONDS) -> asyncio.Task[msgspec.Raw]:
    """Begin a job and return its task when the job says that it runs."""
    running = asyncio.Event()
    call = worker.call({"do": do}, deadline_seconds=seconds, on_event=lambda _: running.set())
    task = asyncio.create_task(call)
    await asyncio.wait_for(running.wait(), SECONDS)
    return task


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_crash_fails_its_job_only(worker: WorkerProcess, number: int) -> None:
    assert await alive(worker)
    with pytest.raises(WorkerStoppedError, match="stopped unexpectedly"):
        await worker.call({"do": "die", "signal": number}, deadline_seconds=SECONDS)

    assert await alive(worker)
    assert worker.starts == 2


async def test_kill_in_the_middle_of_a_job(worker: WorkerProcess) -> None:
    task = await begin(worker, "wait")
    waiting = asyncio.create_task(alive(worker))
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerStoppedError):
        await task
    assert await waiting  # the job behind it gets the fresh worker


async def test_a_worker_that_dies_again_and_again_comes_back(
    worker: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with pytest.raises(WorkerStoppedError):
            await worker.call({"do": "die", "signal": signal.SIGKILL}, deadline_seconds=SECONDS)

    assert await alive(worker)
    assert worker.starts == 4
    # The first death is forgiven; a worker that does nothing but die is started ever more slowly.
    delays = [float(found) for found in re.findall(r"started again in ([0-9.]+) s", caplog.text)]
    assert delays == [0.5, 1.0]


async def test_an_event_that_the_caller_cannot_take_ends_its_job_only(worker: WorkerProcess) -> None:
    def refuse(data: msgspec.Raw) -> None:
        msgspec.msgpack.decode(data, type=str)

    with pytest.raises(WorkerStoppedError):
        await worker.call({"do": "count", "to": 1}, deadline_seconds=SECONDS, on_event=refuse)

    assert await alive(worker)
    assert worker.starts == 2
    await worker.stop()


# Too long, not msgpack, no message of the protocol, text that is no UTF-8, nested beyond all measure.
@pytest.mark.parametrize(
    "body",
    [
        None,
        b"\xc1",
        msgspec.msgpack.encode({"says": "nonsense"}),
        b"\x82\xa4says\xa7failure\xa7message\xa2\xff\xfe",
        b"\x83\xa4says\xa6result\xa2id\x01\xa4data" + b"\x91" * 200_000 + b"\x90",
    ],
)
async def test_a_worker_that_talks_nonsense_is_replaced(worker: WorkerProcess, body: bytes | None) -> None:
    frame = b"\xff" * 4 if body is None else len(body).to_bytes(4, "big") + body
    with pytest.raises(WorkerStoppedError):
        await worker.call({"do": "lie", "frame": frame.hex()}, deadline_seconds=SECONDS)

    assert await alive(worker)
    assert worker.starts == 2


async def test_a_job_that_is_not_taken_passes_its_deadline(worker: WorkerProcess) -> None:
    await worker.wait_ready()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerTimeoutError):
        await worker.call({"do": "echo", "value": bytes(8 << 20)}, deadline_seconds=0.1)

    # The next job waits for the fresh worker.
    assert await alive(worker)
    assert worker.starts == 2


async def test_cancelling_a_job_that_is_not_taken_spares_the_next(worker: WorkerProcess) -> None:
    await worker.wait_ready()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    call = worker.call({"do": "echo", "value": bytes(8 << 20)}, deadline_seconds=SECONDS)
    task = asyncio.create_task(call)
    await asyncio.sleep(0)  # let it begin to send
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await alive(worker)
    assert worker.starts == 2


async def test_cancelling_stops_the_job_and_keeps_the_worker(worker: WorkerProcess) -> None:
    task = await begin(worker, "wait")
    pid = worker.pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await alive(worker)
    assert worker.pid == pid


async def test_a_job_that_does_not_stop_is_killed(make_worker: MakeWorker) -> None:
    worker = await make_worker(grace_seconds=0.1)
    task = await begin(worker, "ignore")
    pid = worker.pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await alive(worker)
    assert worker.pid != pid


async def test_the_deadline_stops_the_job_and_keeps_the_worker(worker: WorkerProcess) -> None:
    task = await begin(worker, "wait", seconds=0.05)
    pid = worker.pid
    with pytest.raises(WorkerTimeoutError) as caught:
        await task

    assert caught.value.status == 503
    assert await alive(worker)
    assert worker.pid == pid


async def test_the_deadline_kills_a_job_that_does_not_stop(make_worker: MakeWorker) -> None:
    worker = await make_worker(grace_seconds=0.1)
    await worker.wait_ready()
    pid = worker.pid
    # Whether the job has come to run by then or not: on a busy machine it may not have.
    with pytest.raises(WorkerTimeoutError):
        await worker.call({"do": "ignore"}, deadline_seconds=0.05)

    assert await alive(worker)
    assert worker.pid != pid


async def test_a_cancelled_job_that_waits_never_runs(worker: WorkerProcess) -> None:
    first = await begin(worker, "wait")
    second = asyncio.create_task(
        worker.call({"do": "die", "signal": signal.SIGKILL}, deadline_seconds=SECONDS)
    )
    await asyncio.sleep(0)  # let it queue behind the first
    second.cancel()
    first.cancel()
    await asyncio.wait({first, second})

    assert await alive(worker)
    assert worker.starts == 1


async def test_stopping_ends_the_process_and_the_job(worker: WorkerProcess) -> None:
    task = await begin(worker, "ignore")
    assert worker.pid is not None
    pidfd = os.pidfd_open(worker.pid)
    await worker.stop()

    with pytest.raises(WorkerStoppedError):
        await task
    assert wait_for_end(pidfd)


FORKS = """
import os, sys, time
out = os.open(sys.argv[1], os.O_WRONLY)
if os.fork() == 0:
    os.write(out, b"x")
    time.sleep(1000)
"""


async def test_closing_ends_what_an_unconfined_worker_left_behind(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    opening = asyncio.create_task(asyncio.to_thread(os.open, fifo, os.O_RDONLY))
    # The child of the worker holds the socket, the log, and this pipe.
    link = await spawn([sys.executable, "-c", FORKS, str(fifo)], "test", {})
    reader = await opening
    said = await asyncio.to_thread(os.read, reader, 1)
    status = await link.close()

    assert (said, status) == (b"x", 0)
    assert await asyncio.to_thread(os.read, reader, 1) == b""
    os.close(reader)


SERVICE = """
import asyncio, sys
from appliance.workers.supervisor import WorkerProcess

async def main():
    worker = WorkerProcess("test", None, command=sys.argv[1:])
    await worker.start()
    await worker.wait_ready()
    running = asyncio.Event()
    call = worker.call({"do": "ignore"}, deadline_seconds=60, on_event=lambda _: running.set())
    task = asyncio.create_task(call)
    await running.wait()
    print(worker.pid, flush=True)
    await task

asyncio.run(main())
"""


def test_no_worker_outlives_the_service() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, *COMMAND], cwd=root, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        pidfd = os.pidfd_open(int(service.stdout.readline()))
        service.kill()
        assert wait_for_end(pidfd)


def wait_for_end(pidfd: int) -> bool:
    """Wait for the process behind ``pidfd`` to end and close it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = bool(poll.poll(SECONDS * 1000))
    os.close(pidfd)
    return ended
