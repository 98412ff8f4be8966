"""The store: what was acknowledged is on disk, a failing write undoes only itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_utils

from appliance.storage.database import Database
from appliance.storage.errors import StorageError, StoreFullError
from appliance.storage.sqlite import connect, has_wal_reset_fault, library_version


def create_numbers(db: sqlite_utils.Database) -> None:
    db.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY) STRICT")


MIGRATIONS = (create_numbers,)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database.open(path, MIGRATIONS)
    yield database
    database.close()


def insert(n: int) -> Callable[[sqlite_utils.Database], object]:
    return lambda db: db.execute("INSERT INTO numbers VALUES (?)", [n]) and n


def numbers(database: Database) -> list[int]:
    return database.read_sync(lambda db: [row[0] for row in db.execute("SELECT n FROM numbers ORDER BY n")])


async def test_writes_of_one_group_succeed_and_fail_alone(database: Database) -> None:
    results = await asyncio.gather(
        *(database.write(insert(n)) for n in [1, 2, 2, 3, 1, 4]),
        return_exceptions=True,
    )

    assert [isinstance(result, Exception) for result in results] == [False, False, True, False, True, False]
    assert numbers(database) == [1, 2, 3, 4]


async def test_a_write_that_raises_leaves_nothing_of_itself(database: Database) -> None:
    def half(db: sqlite_utils.Database) -> None:
        db.execute("INSERT INTO numbers VALUES (7)")
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        await database.write(half)

    assert numbers(database) == []


async def test_a_write_that_ends_its_transaction_fails_and_the_store_goes_on(database: Database) -> None:
    def ends(db: sqlite_utils.Database) -> None:
        db.execute("INSERT INTO numbers VALUES (7)")
        db.execute("ROLLBACK")
        raise ValueError("after the end")

    with pytest.raises(StorageError):
        await database.write(ends)
    await database.write(insert(8))

    assert numbers(database) == [8]


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(StorageError, match="readonly"):
        await database.read(lambda db: db.execute("INSERT INTO numbers VALUES (1)"))


async def test_a_closed_store_refuses_and_keeps_what_was_queued(path: Path) -> None:
    database = Database.open(path, MIGRATIONS)
    queued = [asyncio.ensure_future(database.write(insert(n))) for n in range(50)]
    await asyncio.sleep(0)
    await asyncio.to_thread(database.close)
    await asyncio.gather(*queued)

    with pytest.raises(StorageError, match="closed"):
        await database.write(insert(99))
    reopened = Database.open(path, MIGRATIONS)
    assert numbers(reopened) == list(range(50))
    reopened.close()


def test_a_store_of_a_newer_release_is_refused(path: Path) -> None:
    connection = connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(StorageError, match="newer release"):
        Database.open(path, MIGRATIONS)


def test_a_failing_migration_leaves_the_old_schema(path: Path) -> None:
    Database.open(path, MIGRATIONS).close()

    def broken(db: sqlite_utils.Database) -> None:
        db.execute("CREATE TABLE half (n INTEGER) STRICT")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        Database.open(path, (*MIGRATIONS, broken))
    database = Database.open(path, MIGRATIONS)
    tables = database.read_sync(lambda db: db.table_names())
    assert tables == ["numbers"]
    database.close()


def test_a_file_that_is_no_store_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look at" * 100)

    with pytest.raises(StorageError):
        Database.open(path, MIGRATIONS)


def test_the_sqlite_library_is_past_the_wal_reset_fault() -> None:
    assert not has_wal_reset_fault(library_version())
    assert has_wal_reset_fault((3, 51, 2))
    assert not has_wal_reset_fault((3, 50, 7))


WRITER = """
import asyncio, sys
from pathlib import Path
from appliance.storage.database import Database
from tests.storage.test_database import MIGRATIONS, insert

async def main():
    database = Database.open(Path(sys.argv[1]), MIGRATIONS)
    async def write(n):
        await database.write(insert(n))
        print(n, flush=True)
    for start in range(int(sys.argv[2]), 10**9, 20):
        await asyncio.gather(*(write(n) for n in range(start, start + 20)))

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    randomness = random.Random(7)
    acknowledged: set[int] = set()
    for round_number in range(6):
        first = round_number * 1_000_000
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(randomness.randrange(1, 400)):
                acknowledged.add(int(writer.stdout.readline()))
            os.kill(writer.pid, signal.SIGKILL)
            # What was printed before the kill was acknowledged too; the last line may be torn.
            lines = writer.stdout.read().split("\n")
            acknowledged.update(int(line) for line in lines[:-1])
    database = Database.open(path, MIGRATIONS)
    found = set(numbers(database))
    check = database.read_sync(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0])
    database.close()

    assert check == "ok"
    assert acknowledged <= found


def test_a_disk_that_fills_up_within_a_write_is_said_and_undoes_all_of_it(path: Path) -> None:
    """SQLite ends the whole transaction then, under the savepoint of the write that found the disk full."""
    database = Database.open(path, MIGRATIONS)
    database.write_sync(insert(1))
    pages = database.read_sync(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    database.write_sync(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())

    def fill(db: sqlite_utils.Database) -> None:
        for n in range(10, 100_000):
            insert(n)(db)

    with pytest.raises(StoreFullError) as full:
        database.write_sync(fill)
    assert full.value.status == 503
    database.write_sync(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    database.write_sync(insert(2))
    assert numbers(database) == [1, 2]
    database.close()


# On a disk that is smaller than what the log of changes grows to before SQLite itself empties it.
FULL = """
import sys
from pathlib import Path
from appliance.storage.database import Database
from appliance.storage.errors import StoreFullError
from tests.storage.test_database import MIGRATIONS, insert, numbers

Database.open(Path(sys.argv[1]), MIGRATIONS).close()  # so that the file has most of its size
database = Database.open(Path(sys.argv[1]), MIGRATIONS)
written, refused = [], 0
for n in range(600):
    try:
        written.append(database.write_sync(insert(n)))
    except StoreFullError:
        refused += 1
assert numbers(database) == written
database.close()
print(refused, len(written))
"""


def test_a_log_of_changes_that_fills_the_disk_is_emptied(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, str(tmp_path)]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a small disk")
    command += [sys.executable, "-c", FULL, str(tmp_path / "store.db")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    refused, written = map(int, ended.stdout.split())
    assert refused, "the disk was full"
    # Each time one write is refused, and the next ones find room.
    assert refused < 20 < written
