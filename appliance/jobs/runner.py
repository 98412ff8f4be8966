"""Runs the background jobs of the store, one at a time, in a thread of its own.

The table is the queue: a job is on disk before ``submit`` returns, and what a dead process left
running is queued again at the next start, so handlers must be able to run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from appliance.errors import ApplianceError
from appliance.jobs import job as table
from appliance.jobs.errors import JobCancelledError, JobError
from appliance.jobs.job import Job
from appliance.storage.database import Database
from appliance.storage.errors import StorageError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

PROGRESS_SECONDS = 0.5
# How long the thread waits before it asks a store again that refused it (a full disk, say).
RETRY_SECONDS = 5.0
CLOSE_SECONDS = 60.0


class JobContext:
    """What a handler knows of its job: ``progress`` tells how far it is, ``cancelled`` whether to stop."""

    def __init__(self, report: Progress, cancelled: Callable[[], bool]) -> None:
        self._report = report
        self._reported = float("-inf")
        self.cancelled = cancelled

    def progress(self, done: int, total: int) -> None:
        """Report progress as often as convenient; it is passed on twice a second and when ``done`` is ``total``."""
        now = time.monotonic()
        if done == total or now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            self._report(done, total)


# Runs in the jobs thread; returns something JSON-able. It must stop soon with JobCancelledError once
# ``context.cancelled()`` is true, and running it again after a crash must be harmless.
Handler = Callable[[JobContext, dict[str, Any]], Any]


class _Waiter:
    """Someone on an event loop who waits for a job."""

    def __init__(self, progress: Progress | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.progress = progress

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function`` on the waiter's loop, unless that loop is gone."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *arguments)

    def end(self) -> None:
        """Wake the waiter up."""
        if not self.ended.done():
            self.ended.set_result(None)


class JobRunner:
    """The jobs of one store. ``start`` it once, ``close`` it before the store."""

    def __init__(
        self,
        database: Database,
        handlers: Mapping[str, Handler],
        ended: Callable[[], None] | None = None,
    ) -> None:
        """``ended`` is called in the jobs thread after every job, also one resumed from an earlier run."""
        self._database = database
        self._handlers = dict(handlers)
        self._ended = ended or (lambda: None)
        self._lock = threading.Lock()
        self._waiters: dict[int, list[_Waiter]] = {}
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._current: int | None = None
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        """Queue again what a dead process left running, and begin. Raises StorageError."""
        self._database.write_sync(table.recover)
        self._work.set()
        self._thread.start()

    def close(self) -> None:
        """Stop; a running job goes on at the next start. Waiters get JobError."""
        self._stopping.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.error("job %s does not stop; it runs again at the next start", self._current)
        with self._lock:
            for waiters in self._waiters.values():
                for waiter in waiters:
                    waiter.call(waiter.end)

    async def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        """Queue a job; when this returns its number, it is on disk.

        Raises JobError for an unknown kind, OverloadedError when too many wait, StorageError.
        """
        if kind not in self._handlers:
            raise JobError(f"unknown kind of job {kind!r}")
        job_id = await self._database.write(lambda db: table.insert(db, kind, arguments))
        self._work.set()
        return job_id

    async def get(self, job_id: int) -> Job:
        """Return a job. Raises JobNotFoundError."""
        return await self._database.read(lambda db: table.select(db, job_id))

    async def list(self) -> tuple[Job, ...]:
        """Return the jobs, newest first; of ended ones the last thousand are kept."""
        return await self._database.read(table.select_all)

    async def cancel(self, job_id: int) -> Job:
        """Cancel a job: a queued one at once, a running one as soon as its handler notices.

        When this returns the wish is on disk: the job will not run again after a crash. An ended
        job stays as it is. Raises JobNotFoundError.
        """
        job = await self._database.write(lambda db: table.request_cancel(db, job_id))
        with self._lock:
            if self._current == job_id:
                self._cancel.set()
        if job.ended:
            self._wake(job_id)
        return job

    async def wait(self, job_id: int, progress: Progress | None = None) -> Any:
        """Wait until a job ended and return its result; ``progress`` is called on this loop meanwhile.

        Raises JobNotFoundError; JobError with the job's words when it failed, JobCancelledError when
        it was cancelled; JobError when this runner closes first.
        """
        waiter = _Waiter(progress)
        with self._lock:
            self._waiters.setdefault(job_id, []).append(waiter)
        try:
            job = await self.get(job_id)
            if not job.ended and not self._stopping.is_set():
                await waiter.ended
                job = await self.get(job_id)
        finally:
            with self._lock:
                self._waiters[job_id].remove(waiter)
                if not self._waiters[job_id]:
                    del self._waiters[job_id]
        if job.state == "done":
            return job.result
        if job.state == "cancelled":
            raise JobCancelledError("the job was cancelled")
        raise JobError(job.error or "the service is stopping; the job goes on at the next start")

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._work.clear()
            if self._stopping.is_set():  # set before the clear above, which undid the wake-up
                return
            try:
                job = self._claim()
            except (StorageError, msgspec.MsgspecError):
                log.exception("the jobs cannot be read; trying again")
                self._stopping.wait(RETRY_SECONDS)
                self._work.set()
                continue
            if job is None:
                self._work.wait()
                continue
            self._run(job)
            with self._lock:
                self._current = None
            self._ended()
            self._wake(job.id)
            self._work.set()

    def _claim(self) -> Job | None:
        job = self._database.write_sync(table.claim)
        if job is not None:
            with self._lock:
                self._current = job.id
                self._cancel.clear()
            # A cancellation may have come between the claim and the line above.
            if self._database.read_sync(lambda db: table.select(db, job.id)).cancel_requested:
                self._cancel.set()
        return job

    def _run(self, job: Job) -> None:
        context = JobContext(
            lambda done, total: self._report(job.id, done, total),
            lambda: self._cancel.is_set() or self._stopping.is_set(),
        )
        handler = self._handlers.get(job.kind)
        try:
            if handler is None:
                self._finish(job, "failed", error=f"this release does not know jobs of kind {job.kind!r}")
                return
            log.info("job %d (%s) starts, attempt %d", job.id, job.kind, job.attempts)
            result = msgspec.json.encode(handler(context, job.arguments)).decode()
        except JobCancelledError as error:
            if self._cancel.is_set():
                self._finish(job, "cancelled")
            elif self._stopping.is_set():
                self._give_back(job)
            else:
                self._finish(job, "failed", error=error.message)
        except ApplianceError as error:
            self._finish(job, "failed", error=error.message)
        except Exception:
            log.exception("job %d (%s) failed", job.id, job.kind)
            self._finish(job, "failed", error="an internal error; the service's log has the reason")
        else:
            self._finish(job, "done", result=result)

    def _report(self, job_id: int, done: int, total: int) -> None:
        try:
            self._database.write_sync(lambda db: table.report(db, job_id, done, total))
        except ApplianceError as error:
            log.warning("the progress of job %d is not stored: %s", job_id, error)
        with self._lock:
            for waiter in self._waiters.get(job_id, ()):
                if waiter.progress is not None:
                    waiter.call(waiter.progress, done, total)

    def _finish(
        self, job: Job, state: table.State, result: str | None = None, error: str | None = None
    ) -> None:
        log.info("job %d (%s) is %s%s", job.id, job.kind, state, f": {error}" if error else "")
        self._store(job, lambda db: table.finish(db, job.id, state, result, error))

    def _give_back(self, job: Job) -> None:
        log.info("job %d (%s) goes on at the next start", job.id, job.kind)
        self._store(job, lambda db: table.give_back(db, job.id))

    def _store(self, job: Job, change: Callable[[Any], None]) -> None:
        """Store how a job ended; with a full disk, as soon as that is possible again."""
        while True:
            try:
                return self._database.write_sync(change)
            except ApplianceError:
                log.exception("the end of job %d cannot be stored; trying again", job.id)
            if self._stopping.wait(RETRY_SECONDS):
                return None

    def _wake(self, job_id: int) -> None:
        with self._lock:
            for waiter in self._waiters.get(job_id, ()):
                waiter.call(waiter.end)
