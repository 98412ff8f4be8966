"""One store: one writer thread with group commit, read-only connections for everyone else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import sqlite_utils

from appliance.storage.errors import StorageError, StoreFullError
from appliance.storage.migrations import Migration, migrate
from appliance.storage.sqlite import Connection, connect, sqlite, wrap

log = logging.getLogger(__name__)

T = TypeVar("T")

# Tasks that one transaction carries at most: an fsync is shared, but a burst must not delay the first.
GROUP_SIZE = 256
QUEUE_SIZE = 10_000
READERS = 4


class _Task:
    """A queued write: the function, and where its result goes."""

    __slots__ = ("error", "function", "future", "result")

    def __init__(self, function: Callable[[sqlite_utils.Database], object]) -> None:
        self.function = function
        self.future: Future[object] = Future()
        self.result: object = None
        self.error: Exception | None = None


class Database:
    """A SQLite file. Open it with ``Database.open``; ``close`` when done.

    ``write`` runs a function on the writer thread and returns after the commit is on disk;
    functions queued together share one transaction, each in its own savepoint, so a failing one
    undoes only itself. ``read`` runs a function on a read-only connection and sees the last commit.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self.path = path
        self._connection = connection
        self._queue: queue.Queue[_Task | None] = queue.Queue(QUEUE_SIZE)
        self._readers = threading.local()
        self._reader_connections: list[Connection] = []
        self._reader_lock = threading.Lock()
        self._read_pool = ThreadPoolExecutor(READERS, thread_name_prefix=f"read-{path.stem}")
        self._closed = False
        self._close_lock = threading.Lock()
        self._writer = threading.Thread(target=self._write_loop, name=f"write-{path.stem}", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path, migrations: Sequence[Migration]) -> Database:
        """Open or create the store at ``path`` and bring its schema up to date.

        Raises StorageError when it cannot be opened or is newer than this program.
        """
        connection = connect(path)
        try:
            migrate(wrap(connection), migrations)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    @property
    def pending_writes(self) -> int:
        """How many writes wait for the writer."""
        return self._queue.qsize()

    async def write(self, function: Callable[[sqlite_utils.Database], T]) -> T:
        """Run ``function`` in a transaction on the writer thread; return its result after the commit."""
        return await asyncio.wrap_future(self._submit(function))

    def write_sync(self, function: Callable[[sqlite_utils.Database], T]) -> T:
        """Like ``write``, for callers outside the event loop."""
        return self._submit(function).result()

    async def read(self, function: Callable[[sqlite_utils.Database], T]) -> T:
        """Run ``function`` on a read-only connection in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_pool, self.read_sync, function)

    def read_sync(self, function: Callable[[sqlite_utils.Database], T]) -> T:
        """Run ``function`` on this thread's read-only connection; for indexed look-ups and non-async callers."""
        try:
            return function(self._reader())
        except sqlite.Error as error:
            raise StorageError(f"reading {self.path.name} failed: {error}") from error

    def close(self) -> None:
        """Finish the queued writes, move the WAL into the file and close every connection."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        self._read_pool.shutdown()
        with self._reader_lock:
            for connection in self._reader_connections:
                connection.close()
        # A busy checkpoint only leaves work for the next start.
        with contextlib.suppress(sqlite.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _reader(self) -> sqlite_utils.Database:
        database: sqlite_utils.Database | None = getattr(self._readers, "database", None)
        if database is None:
            if self._closed:
                raise StorageError(f"the store {self.path.name} is closed")
            connection = connect(self.path, read_only=True)
            with self._reader_lock:
                self._reader_connections.append(connection)
            database = self._readers.database = wrap(connection)
        return database

    def _submit(self, function: Callable[[sqlite_utils.Database], T]) -> Future[T]:
        task = _Task(function)
        with self._close_lock:
            if self._closed:
                raise StorageError(f"the store {self.path.name} is closed")
            try:
                self._queue.put_nowait(task)
            except queue.Full:
                raise StoreFullError(
                    "The store has too many writes waiting; try again.", retry_after=1
                ) from None
        return task.future  # type: ignore[return-value]

    def _write_loop(self) -> None:
        database = wrap(self._connection)
        while (first := self._queue.get()) is not None:
            group, stop = self._collect(first)
            try:
                self._commit(database, group)
            except Exception as error:
                # Nothing may wait for ever: this group and all that follow are told.
                log.exception("the writer of %s failed", self.path.name)
                failure = StorageError(f"the store {self.path.name} can no longer be written: {error}")
                self._fail(group, failure)
                return
            if stop:
                return

    def _fail(self, group: list[_Task], failure: StorageError) -> None:
        with self._close_lock:
            self._closed = True
        while True:
            for task in group:
                if not task.future.done():
                    task.future.set_exception(failure)
            try:
                task_or_end = self._queue.get_nowait()
            except queue.Empty:
                return
            group = [] if task_or_end is None else [task_or_end]

    def _collect(self, first: _Task) -> tuple[list[_Task], bool]:
        group = [first]
        while len(group) < GROUP_SIZE:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is None:
                return group, True
            group.append(task)
        return group, False

    def _commit(self, database: sqlite_utils.Database, group: list[_Task]) -> None:
        connection = self._connection
        # A task cancelled while it waited is dropped; from here on it can no longer be cancelled.
        group = [task for task in group if task.future.set_running_or_notify_cancel()]
        if not group:
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            for task in group:
                self._run(database, task)
            connection.execute("COMMIT")
        except sqlite.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            failure = _failure(self.path, error)
            if isinstance(failure, StoreFullError):
                self._empty_log()
            for task in group:
                task.future.set_exception(task.error or failure)
            return
        for task in group:
            if task.error is not None:
                task.future.set_exception(task.error)
            else:
                task.future.set_result(task.result)

    def _empty_log(self) -> None:
        """Move the WAL into the file, that the next writes take its room: it may be what fills the disk.

        SQLite does so by itself only after a commit, and now none succeeds.
        """
        with contextlib.suppress(sqlite.Error):  # the file has no room to grow, or is being read
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _run(self, database: sqlite_utils.Database, task: _Task) -> None:
        connection = self._connection
        connection.execute("SAVEPOINT task")
        try:
            task.result = task.function(database)
        except Exception as error:
            if not connection.in_transaction:
                if isinstance(error, sqlite.Error):
                    raise  # SQLite itself gave the transaction up: the disk is full, or fails
                raise sqlite.OperationalError("a write ended the transaction it ran in") from error
            connection.execute("ROLLBACK TO task")
            task.error = _failure(self.path, error) if isinstance(error, sqlite.OperationalError) else error
        connection.execute("RELEASE task")


def _failure(path: Path, error: Exception) -> StorageError:
    if "full" in str(error):
        return StoreFullError(f"The disk that holds {path.name} is full.", retry_after=60)
    return StorageError(f"writing {path.name} failed: {error}")
