"""The service's side: start a worker, give it one job at a time, and start it again when it dies.

A ``WorkerProcess`` belongs to the event loop it was started on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence

import msgspec

from appliance.frozen import executable
from appliance.workers.environment import worker_environment
from appliance.workers.errors import (
    WorkerError,
    WorkerStartError,
    WorkerStoppedError,
    WorkerTimeoutError,
)
from appliance.workers.link import Link, spawn
from appliance.workers.protocol import (
    Call,
    Cancel,
    Event,
    Failure,
    FrameTooLargeError,
    Limits,
    Result,
    Start,
    Started,
    encode_raw,
)

logger = logging.getLogger(__name__)

# A worker that lived this long, or finished a job, is started again at once.
_STABLE_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 30.0
# A killed process is waited for this long before its job fails without it.
_END_SECONDS = 5.0
_MAX_MESSAGE = 2000

OnEvent = Callable[[msgspec.Raw], None]


class _Pending:
    """The job that the worker has now."""

    def __init__(self, number: int, on_event: OnEvent | None) -> None:
        self.id = number
        self.on_event = on_event
        self.done: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()


class WorkerProcess:
    """One kind of worker: a single process, replaced when it ends.

    ``arguments`` is what the kind is opened with, ``threads`` what its libraries may use. ``grace_seconds``
    is how long a cancelled or late job may take to stop before the process is killed, ``start_seconds``
    how long the worker may take to open. ``command`` replaces our own program, for tests.
    """

    def __init__(
        self,
        kind: str,
        arguments: object,
        *,
        limits: Limits | None = None,
        threads: int = 1,
        grace_seconds: float = 15.0,
        start_seconds: float = 120.0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.kind = kind
        self._start = Start(limits=limits or Limits(), arguments=encode_raw(arguments))
        self._threads = threads
        self._grace = grace_seconds
        self._start_seconds = start_seconds
        self._command = list(command) if command is not None else executable()
        self._link: Link | None = None
        self._pending: _Pending | None = None
        self._one_at_a_time = asyncio.Lock()
        self._next_id = 1
        # Resolved when the worker is open, failed when it could not be; a new one for every process.
        self._opened: asyncio.Future[None] | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._stopping = False
        self._done_jobs = 0
        self.starts = 0

    @property
    def ready(self) -> bool:
        """Whether a worker is open and takes jobs."""
        opened = self._opened
        return opened is not None and opened.done() and not opened.cancelled() and opened.exception() is None

    @property
    def pid(self) -> int | None:
        """The process id of the worker that runs now."""
        return self._link.pid if self._link is not None else None

    async def start(self) -> None:
        """Begin to supervise; returns at once, ``wait_ready`` waits."""
        if self._supervision is None:
            self._stopping = False
            self._expect_worker()
            self._supervision = asyncio.create_task(self._supervise(), name=f"worker {self.kind}")
            self._supervision.add_done_callback(self._supervision_ended)

    async def wait_ready(self) -> None:
        """Wait until the worker is open. Raises WorkerStartError when it could not be opened."""
        if self._opened is None:
            raise WorkerStartError(f"the {self.kind} worker is not running")
        await asyncio.shield(self._opened)

    async def stop(self) -> None:
        """End the worker and its supervision; a job that runs fails with WorkerStoppedError."""
        self._stopping = True
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            # Not awaited itself: how it ended was logged and is not the caller's trouble.
            await asyncio.wait({supervision})
        self._expect_worker()
        self._start_failed(f"the {self.kind} worker was stopped")

    async def call(
        self,
        arguments: object,
        *,
        fds: Sequence[int] = (),
        deadline_seconds: float,
        on_event: OnEvent | None = None,
    ) -> msgspec.Raw:
        """Have the worker do a job and return its result; jobs of one worker take turns.

        ``fds`` are passed along and stay open here. ``on_event`` is called on the event loop with what the
        job says before its end. Cancelling the task that awaits this stops the job; it ends when the worker
        has stopped, at the latest ``grace_seconds`` later, by force. The deadline counts from the start of
        the job. What ``on_event`` raises is logged and ends the job and the worker.

        Raises WorkerTimeoutError, WorkerStoppedError when the process ends, WorkerStartError when
        there is none, WorkerError with the worker's own status and text when the job fails, and with
        status 413 when ``arguments`` are more than a message may hold.
        """
        async with self._one_at_a_time:
            await self.wait_ready()
            link = self._link
            if link is None:
                raise self._stopped()
            pending = self._pending = _Pending(self._next_id, on_event)
            self._next_id += 1
            job = Call(
                id=pending.id,
                arguments=encode_raw(arguments),
                deadline_seconds=deadline_seconds,
                fds=len(fds),
            )
            try:
                await self._hand_over(link, job, fds, deadline_seconds)
                return await self._outcome(link, pending, deadline_seconds)
            finally:
                self._pending = None

    async def _outcome(self, link: Link, pending: _Pending, deadline: float) -> msgspec.Raw:
        try:
            finished, _ = await asyncio.wait({pending.done}, timeout=deadline + self._grace)
        except asyncio.CancelledError:
            await self._settle(link, pending)
            raise
        if not finished:
            logger.warning("the %s worker does not stop at its deadline and is killed", self.kind)
            await self._end_worker(link, pending)
            raise self._late(deadline)
        return pending.done.result()

    async def _settle(self, link: Link, pending: _Pending) -> None:
        """Wait for a cancelled job's end; kill the worker when it takes too long or we are hurried."""
        finished: set[asyncio.Future[msgspec.Raw]] = set()
        try:
            pending.on_event = None
            with contextlib.suppress(OSError):
                await link.send(Cancel(id=pending.id))
            finished, _ = await asyncio.wait({pending.done}, timeout=self._grace)
        finally:
            if finished:
                _retrieve(pending.done)
            else:
                logger.warning("the %s worker does not stop its cancelled job and is killed", self.kind)
                self._kill(link)
                _fail(pending.done, self._stopped())

    async def _end_worker(self, link: Link, pending: _Pending) -> None:
        self._kill(link)
        await asyncio.wait({pending.done}, timeout=_END_SECONDS)
        _fail(pending.done, self._stopped())
        _retrieve(pending.done)

    def _kill(self, link: Link) -> None:
        """End the process; whoever calls next waits for the one that follows it."""
        link.kill()
        if self._link is link:
            self._expect_worker()

    async def _hand_over(self, link: Link, job: Call, fds: Sequence[int], deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline):
                await link.send(job, fds)
        # After half a message nothing that follows would be understood.
        except TimeoutError:
            logger.warning("the %s worker does not take its job and is killed", self.kind)
            self._kill(link)
            raise self._late(deadline) from None
        except asyncio.CancelledError:
            self._kill(link)
            raise
        except OSError as error:
            raise self._stopped() from error
        except FrameTooLargeError as error:
            text = f"the job is larger than the {self.kind} worker takes"
            raise WorkerError(text, status=413, type="invalid_request_error") from error

    def _late(self, deadline: float) -> WorkerTimeoutError:
        return WorkerTimeoutError(f"the {self.kind} job took longer than {deadline:.0f} s")

    def _stopped(self) -> WorkerStoppedError:
        return WorkerStoppedError(f"the {self.kind} worker stopped unexpectedly; please try again")

    def _expect_worker(self) -> None:
        if self._opened is None or self._opened.done():
            self._opened = asyncio.get_running_loop().create_future()

    def _supervision_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("the supervision of the %s worker failed", self.kind, exc_info=task.exception())
            self._expect_worker()
            self._start_failed(f"the {self.kind} worker is not supervised any more")

    async def _supervise(self) -> None:
        """Run one process after another until ``stop``."""
        failures = 0
        while True:
            began, jobs_before = time.monotonic(), self._done_jobs
            try:
                opened = await self._run_once()
            except OSError as error:
                opened = False
                self._start_failed(f"the {self.kind} worker cannot be started: {error.strerror}")
            except Exception:
                logger.exception("running the %s worker failed", self.kind)
                opened = False
                self._start_failed(f"the {self.kind} worker cannot be started")
            stable = opened and (self._done_jobs > jobs_before or time.monotonic() - began > _STABLE_SECONDS)
            failures = 0 if stable else failures + 1
            if failures > 1 or not opened:
                delay = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
                logger.warning("the %s worker is started again in %.2f s", self.kind, delay)
                await asyncio.sleep(delay)
            self._expect_worker()

    async def _run_once(self) -> bool:
        """Run one process to its end; return whether it had opened."""
        link = await spawn(self._command, self.kind, worker_environment(self._threads))
        self._link = link
        self.starts += 1
        opened = False
        try:
            opened = await self._open(link)
            if opened:
                await self._pump(link)
        finally:
            self._link = None
            # A new promise first: whoever sees the old job fail may call again at once.
            if opened and not self._stopping:
                self._expect_worker()
            if self._pending is not None:
                _fail(self._pending.done, self._stopped())
            status = await _uninterrupted(link.close())
            if not self._stopping:
                logger.warning("the %s worker ended with status %s", self.kind, status)
        return opened

    async def _open(self, link: Link) -> bool:
        try:
            async with asyncio.timeout(self._start_seconds):
                await link.send(self._start)
                message = await link.receive()
        except TimeoutError:
            self._start_failed(f"the {self.kind} worker did not open within {self._start_seconds:.0f} s")
            return False
        except OSError:
            message = None
        if isinstance(message, Started):
            logger.info("the %s worker is ready, process %d", self.kind, link.pid)
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
            return True
        reason = message.message if isinstance(message, Failure) else "it ended while it opened"
        self._start_failed(f"the {self.kind} worker cannot be started: {reason}")
        return False

    def _start_failed(self, text: str) -> None:
        if not self._stopping:
            logger.error("%s", text)
        if self._opened is not None:
            _fail(self._opened, WorkerStartError(text, retry_after=5))

    async def _pump(self, link: Link) -> None:
        """Deliver what the worker says until it hangs up."""
        while True:
            try:
                message = await link.receive()
            except ConnectionError:
                return
            if message is None:
                return
            pending = self._pending
            if isinstance(message, Started) or pending is None or message.id != pending.id:
                continue  # the rest of a job that nobody waits for
            match message:
                case Event():
                    if not self._deliver(pending, message):
                        link.kill()
                        return
                case Result():
                    self._done_jobs += 1
                    if not pending.done.done():
                        pending.done.set_result(message.data)
                case Failure():
                    self._done_jobs += 1
                    _fail(pending.done, _job_error(message))

    def _deliver(self, pending: _Pending, event: Event) -> bool:
        """Hand the event to the caller; return False, its job failed, when the caller cannot take it."""
        if pending.on_event is None:
            return True
        try:
            pending.on_event(event.data)
        except Exception:
            logger.exception("the %s worker said what cannot be understood and is killed", self.kind)
            self._expect_worker()
            _fail(pending.done, self._stopped())
            return False
        return True


async def _uninterrupted(work: Coroutine[None, None, int | None]) -> int | None:
    """Finish ``work`` even when this task is cancelled meanwhile; the cancellation follows it."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _job_error(failure: Failure) -> WorkerError:
    """Return the failure as an error; what the worker says of it is not trusted to be an error's status."""
    kind = WorkerTimeoutError if failure.code == WorkerTimeoutError.code else WorkerError
    return kind(
        failure.message[:_MAX_MESSAGE],
        status=min(max(failure.status, 400), 599),
        type=failure.type,
        code=failure.code,
        param=failure.param,
    )


def _fail(future: asyncio.Future[msgspec.Raw] | asyncio.Future[None], error: Exception) -> None:
    """Fail ``future`` unless it is done; it does not matter whether somebody looks."""
    if not future.done():
        future.set_exception(error)
        _retrieve(future)


def _retrieve(future: asyncio.Future[msgspec.Raw] | asyncio.Future[None]) -> None:
    if future.done() and not future.cancelled():
        future.exception()
