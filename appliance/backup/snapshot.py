"""Copies of all stores of one instant, while they are written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlite_utils

from appliance.backup.errors import BackupError
from appliance.backup.manifest import COLLECTIONS, STORE
from appliance.errors import ApplianceError
from appliance.storage.database import Database
from appliance.storage.sqlite import Connection, connect, sqlite

# A writer that is busy for longer than this has no instant to give; one that is held is never held for longer.
HOLD_SECONDS = 30.0
# 16 MiB with pages of 4 KiB: other threads run between two steps.
PAGES_AT_ONCE = 4096


def stores_in(data_dir: Path) -> list[str]:
    """Return the paths of all stores in a data directory, relative to it."""
    collections = sorted((data_dir / COLLECTIONS).glob("*.db"))
    return [STORE, *(f"{COLLECTIONS}/{path.name}" for path in collections)]


def snapshot(data_dir: Path, writers: Sequence[Database], target: Path) -> list[str]:
    """Copy every store under ``data_dir`` into ``target``; return their relative paths.

    All copies are of one instant: while it lasts (milliseconds), none of ``writers``, which are all the stores
    that this process has open for writing, commits. What was acknowledged before is in the copies; they lag
    behind the stores by what is written while they are made. Raises BackupError, OSError.
    """
    with contextlib.ExitStack() as opened:
        views: dict[str, Connection] = {}
        with held(writers):
            for name in stores_in(data_dir):
                views[name] = opened.enter_context(frozen_view(data_dir / name))
        for name, view in views.items():
            copy = target / name
            copy.parent.mkdir(mode=0o700, exist_ok=True)
            copy_store(view, copy)
    return list(views)


@contextlib.contextmanager
def held(writers: Sequence[Database]) -> Iterator[None]:
    """Keep every writer from committing while this lasts, each between two groups of writes.

    Raises BackupError when one does not come to rest in time.
    """
    release = threading.Event()
    failures: list[ApplianceError] = []

    def hold(writer: Database, resting: threading.Event) -> None:
        def rest(_db: sqlite_utils.Database) -> None:
            resting.set()
            # Bounded, should the thread that holds it be gone.
            release.wait(2 * HOLD_SECONDS)

        try:
            writer.write_sync(rest)
        except ApplianceError as error:
            failures.append(error)
            resting.set()

    with ThreadPoolExecutor(max(1, len(writers)), thread_name_prefix="hold") as waiting:
        try:
            rests = [(writer, threading.Event()) for writer in writers]
            for each in rests:
                waiting.submit(hold, *each)
            for _, resting in rests:
                if not resting.wait(HOLD_SECONDS):
                    raise BackupError("a store is too busy to be copied now; try again", status=503)
            if failures:
                raise BackupError(f"a store cannot be copied: {failures[0].message}", status=500)
            yield
        finally:
            release.set()


@contextlib.contextmanager
def frozen_view(path: Path) -> Iterator[Connection]:
    """Give a connection that sees the store as it is now, whatever is committed meanwhile."""
    connection = connect(path, read_only=True)
    try:
        connection.execute("BEGIN")
        # A transaction begins to see with its first read.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield connection
    except sqlite.Error as error:
        raise BackupError(f"cannot read the store {path.name}: {error}", status=500) from error
    finally:
        connection.close()


def copy_store(view: Connection, copy: Path) -> None:
    """Copy what ``view`` sees into a new file that is whole by itself (no write-ahead log)."""
    target = sqlite.connect(str(copy), isolation_level=None)
    try:
        copy.chmod(0o600)
        # Nobody reads the copy before it is whole and synced as a file.
        target.execute("PRAGMA synchronous = OFF")
        view.backup(target, pages=PAGES_AT_ONCE)
        target.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite.Error as error:
        raise _failure(copy, error) from error
    finally:
        target.close()


def check_store(path: Path) -> None:
    """Raise BackupError unless a copy is a whole SQLite file whose references hold."""
    connection = sqlite.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite.Error as error:
        raise _failure(path, error) from error
    finally:
        connection.close()
    if found != "ok":
        raise BackupError(f"the copy of {path.name} is damaged: {found}", status=500)
    if broken is not None:
        raise BackupError(
            f"the copy of {path.name} is damaged: table {broken[0]} lost a reference", status=500
        )


def _failure(path: Path, error: Exception) -> BackupError:
    if "full" in str(error):
        return BackupError(f"the disk is full: {path.name} could not be copied", status=507)
    return BackupError(f"the copy of {path.name} is damaged: {error}", status=500)
