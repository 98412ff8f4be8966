"""Copies are of one instant over all stores, while they are written; what was acknowledged is in them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from appliance.backup.errors import BackupError
from appliance.backup.snapshot import check_store, copy_store, frozen_view, held, snapshot
from appliance.storage.database import Database
from appliance.storage.errors import StorageError


def _table(db: sqlite_utils.Database) -> None:
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filling BLOB) STRICT")


def numbers(path: Path) -> list[int]:
    with sqlite_utils.Database(str(path), execute_plugins=False).conn as connection:
        return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]


def test_a_busy_box_is_copied_at_one_instant(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "collections").mkdir(parents=True)
    one = Database.open(data / "appliance.db", [_table])
    two = Database.open(data / "collections/c.db", [_table])
    acknowledged, ending = [0], threading.Event()

    def insert(number: int) -> Any:
        return lambda db: db.execute("INSERT INTO t VALUES (?, randomblob(2000))", [number])

    def write() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            one.write_sync(insert(number))
            two.write_sync(insert(number))
            acknowledged[0] = number

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(5):
            target = tmp_path / f"copy{turn}"
            target.mkdir()
            before = acknowledged[0]
            assert snapshot(data, [one, two], target) == ["appliance.db", "collections/c.db"]
            first, second = numbers(target / "appliance.db"), numbers(target / "collections/c.db")
            for copy in ("appliance.db", "collections/c.db"):
                check_store(target / copy)
                assert not (target / f"{copy}-wal").exists()
            # The second store is written after the first: at any instant it is at most one behind.
            assert len(first) - len(second) in (0, 1)
            assert len(second) >= before
            assert first == list(range(1, len(first) + 1))
    finally:
        ending.set()
        writer.join()
        one.close()
        two.close()


def test_nothing_is_committed_while_writers_are_held(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "appliance.db", [_table])
    with held([database]):
        late = threading.Thread(
            target=database.write_sync, args=[lambda db: db.execute("INSERT INTO t (n) VALUES (1)")]
        )
        late.start()
        late.join(0.2)
        assert late.is_alive()
        assert numbers(tmp_path / "appliance.db") == []
    late.join()
    assert numbers(tmp_path / "appliance.db") == [1]
    database.close()


def test_a_store_that_cannot_be_written_ends_the_backup_and_holds_nobody(tmp_path: Path) -> None:
    one = Database.open(tmp_path / "one.db", [_table])
    two = Database.open(tmp_path / "two.db", [_table])
    two.close()
    with pytest.raises(BackupError, match="closed"), held([one, two]):
        raise AssertionError
    one.write_sync(lambda db: db.execute("INSERT INTO t (n) VALUES (1)"))
    one.close()
    with pytest.raises(StorageError):
        one.write_sync(lambda _db: None)


def test_a_damaged_copy_is_noticed(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "appliance.db", [_table])
    database.write_sync(
        lambda db: db.execute(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 200) "
            "INSERT INTO t SELECT n, randomblob(500) FROM c"
        )
    )
    with frozen_view(tmp_path / "appliance.db") as view:
        copy_store(view, tmp_path / "copy.db")
    database.close()
    check_store(tmp_path / "copy.db")
    data = bytearray((tmp_path / "copy.db").read_bytes())
    data[4096 * 5 : 4096 * 6] = bytes(4096)
    (tmp_path / "copy.db").write_bytes(data)
    with pytest.raises(BackupError, match="damaged"):
        check_store(tmp_path / "copy.db")
