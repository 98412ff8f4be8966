"""Stores of a newer release, opened by the one before: an upgrade that went wrong goes back to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlite_utils

from appliance.storage.database import Database
from appliance.storage.errors import StorageError
from appliance.storage.migrations import MIGRATIONS, Migration, oldest_reader, open_to, versions

# The schemas that releases were shipped with, oldest first. Append when a release is made.
RELEASED = (8,)


def first(database: sqlite_utils.Database) -> None:
    database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT")


@open_to(1)
def adds(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE notes ADD COLUMN colour TEXT")


def takes_away(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE notes DROP COLUMN colour")


def schema_of(path: Path, migrations: tuple[Migration, ...]) -> tuple[int, int]:
    database = Database.open(path, migrations)
    try:
        return database.read_sync(versions)
    finally:
        database.close()


def test_the_release_before_opens_and_writes_what_a_step_that_only_adds_leaves(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert schema_of(path, (first, adds)) == (2, 1)
    database = Database.open(path, (first,))
    database.write_sync(lambda db: db.execute("INSERT INTO notes (text) VALUES ('kept')"))
    database.close()
    assert schema_of(path, (first,)) == (2, 1)
    database = Database.open(path, (first, adds))
    assert database.read_sync(lambda db: list(db.execute("SELECT text, colour FROM notes"))) == [
        ("kept", None)
    ]
    database.close()


def test_what_a_step_takes_away_shuts_older_programs_out(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert schema_of(path, (first, adds, takes_away)) == (3, 3)
    for older in ((first,), (first, adds)):
        with pytest.raises(StorageError, match="written by a newer release"):
            Database.open(path, older)


def test_a_later_addition_does_not_let_back_in_what_an_earlier_step_shut_out(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert schema_of(path, (first, takes_nothing, adds_later)) == (3, 2)
    with pytest.raises(StorageError):
        Database.open(path, (first,))
    assert schema_of(path, (first, takes_nothing)) == (3, 2)


def takes_nothing(database: sqlite_utils.Database) -> None:
    database.execute("CREATE TABLE others (id INTEGER PRIMARY KEY) STRICT")


@open_to(1)
def adds_later(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE notes ADD COLUMN later TEXT")


def test_the_previous_release_may_always_open_what_this_one_leaves() -> None:
    assert oldest_reader(MIGRATIONS) <= RELEASED[-1]
