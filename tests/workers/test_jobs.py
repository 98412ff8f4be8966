"""What a job of a worker gives, says and fails with."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from typing import Any

import msgspec
import pytest

from appliance.workers.errors import WorkerError, WorkerStartError
from appliance.workers.protocol import MAX_FRAME_BYTES, Failure, encode_frame
from appliance.workers.supervisor import WorkerProcess
from tests.workers.conftest import MakeWorker

SECONDS = 30.0


async def ask(worker: WorkerProcess, do: str, **request: Any) -> Any:
    return msgspec.msgpack.decode(await worker.call({"do": do, **request}, deadline_seconds=SECONDS))


async def test_a_job_gives_its_result(worker: WorkerProcess) -> None:
    value = {"words": ["one", "zwei", "三"], "number": 2**60, "bytes": b"\0\xff"}

    assert await ask(worker, "echo", value=value) == value
    assert worker.ready


async def test_what_a_job_says_comes_in_order_before_its_result(worker: WorkerProcess) -> None:
    said: list[int] = []
    result = await worker.call(
        {"do": "count", "to": 500},
        deadline_seconds=SECONDS,
        on_event=lambda data: said.append(msgspec.msgpack.decode(data)),
    )

    assert said == list(range(500))
    assert msgspec.msgpack.decode(result) == "done"


async def test_descriptors_arrive_and_stay_open_here(worker: WorkerProcess) -> None:
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        first.write(b"one")
        first.flush()
        second.write(b"two")
        second.flush()
        for _ in range(3):
            read = await worker.call(
                {"do": "read"}, fds=[first.fileno(), second.fileno()], deadline_seconds=SECONDS
            )
            assert msgspec.msgpack.decode(read) == [b"one", b"two"]
        assert os.fstat(first.fileno()).st_size == 3
    # Nothing is left over for the next job.
    assert await ask(worker, "read") == []


async def test_a_large_message_comes_whole(worker: WorkerProcess) -> None:
    value = os.urandom(3 << 20)

    assert await ask(worker, "echo", value=value) == value


async def test_jobs_take_turns(worker: WorkerProcess) -> None:
    values = await asyncio.gather(*(ask(worker, "echo", value=number) for number in range(20)))

    assert values == list(range(20))
    assert worker.starts == 1


async def test_a_refusal_keeps_its_status_and_text(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError) as caught:
        await ask(worker, "refuse")

    error = caught.value
    assert (error.status, error.message, error.param, error.code) == (400, "not this one", "value", "odd")
    assert error.type == "invalid_request_error"


async def test_a_failure_tells_the_log_and_not_the_caller(
    worker: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(WorkerError) as caught:
        await ask(worker, "fail")
    assert caught.value.status == 500
    assert "secret" not in caught.value.message
    assert await ask(worker, "echo", value="alive") == "alive"
    assert worker.starts == 1
    await worker.stop()
    assert "a secret of the worker" in caplog.text


async def test_standard_error_goes_to_the_log(
    worker: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await ask(worker, "say", text="x" * 200_000)
    await ask(worker, "say", text="hello from below")
    await worker.stop()

    assert "hello from below" in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 5_000


async def test_the_log_shows_what_a_terminal_would_obey(
    worker: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await ask(worker, "say", text="red \x1b[31m tür \u202e end")
    await worker.stop()

    assert "red \\x1b[31m tür \\u202e end" in caplog.text


async def test_a_job_larger_than_a_message_is_refused(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="larger than") as caught:
        await ask(worker, "echo", value=bytes(MAX_FRAME_BYTES))

    assert caught.value.status == 413
    assert await ask(worker, "echo", value="alive") == "alive"
    assert worker.starts == 1


async def test_a_result_larger_than_a_message_fails_its_job_only(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="result is too large"):
        await ask(worker, "large", bytes=MAX_FRAME_BYTES)

    assert await ask(worker, "echo", value="alive") == "alive"
    assert worker.starts == 1


@pytest.mark.parametrize(("said", "status"), [(200, 400), (-(2**40), 400), (418, 418), (10**9, 599)])
async def test_a_failure_is_an_error_whatever_the_worker_calls_it(
    worker: WorkerProcess, said: int, status: int
) -> None:
    frame = encode_frame(Failure(id=1, message="x" * 100_000, status=said))
    with pytest.raises(WorkerError) as caught:
        await ask(worker, "lie", frame=frame.hex())

    assert caught.value.status == status
    assert len(caught.value.message) < 5_000


async def test_a_kind_that_cannot_be_opened_says_why(make_worker: MakeWorker) -> None:
    worker = await make_worker("refuse to open")

    with pytest.raises(WorkerStartError, match="there is nothing to open"):
        await ask(worker, "echo", value=1)
    assert not worker.ready


async def test_a_worker_that_dies_while_opening_is_an_error(make_worker: MakeWorker) -> None:
    worker = await make_worker("die while opening")

    with pytest.raises(WorkerStartError, match="ended while it opened"):
        await worker.wait_ready()


async def test_a_program_that_is_not_there_is_an_error() -> None:
    worker = WorkerProcess("test", None, command=["/nowhere/at/all"])
    await worker.start()
    with pytest.raises(WorkerStartError, match="No such file"):
        await worker.wait_ready()
    await worker.stop()


async def test_a_stopped_worker_takes_no_job(worker: WorkerProcess) -> None:
    await worker.wait_ready()
    await worker.stop()

    with pytest.raises(WorkerStartError):
        await ask(worker, "echo", value=1)
    assert worker.pid is None
