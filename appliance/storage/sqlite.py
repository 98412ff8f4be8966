"""The one SQLite library of the house.

Every file is opened through pysqlite3: a stock Python may lack loadable extensions, and two SQLite
libraries in one process break each other's POSIX locks. A test forbids ``import sqlite3`` elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlite_utils
from pysqlite3 import dbapi2 as sqlite

from appliance.storage.errors import StorageError

__all__ = ["Connection", "connect", "has_wal_reset_fault", "library_version", "sqlite", "wrap"]

Connection = Any  # pysqlite3 ships no types

# Versions below 3.51.3 may lose committed pages in a checkpoint race (sqlite.org/wal.html#walresetbug).
FIXED_VERSION = (3, 51, 3)
FIXED_BACKPORTS = ((3, 44, 6), (3, 50, 7))


def library_version() -> tuple[int, ...]:
    """Return the version of the SQLite library in use."""
    return tuple(int(part) for part in sqlite.sqlite_version.split("."))


def has_wal_reset_fault(version: tuple[int, ...]) -> bool:
    """Tell whether this SQLite version may corrupt a WAL database when a checkpoint meets a commit."""
    return version < FIXED_VERSION and version not in FIXED_BACKPORTS


def connect(path: Path, *, read_only: bool = False) -> Connection:
    """Open ``path`` with the settings that every connection of the house has.

    Transactions are explicit (isolation_level None). Raises StorageError when it cannot be opened.
    """
    if has_wal_reset_fault(library_version()):
        raise StorageError(
            f"SQLite {sqlite.sqlite_version} may corrupt a WAL database; 3.51.3 or newer is needed"
        )
    mode = "ro" if read_only else "rwc"
    try:
        connection = sqlite.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        # First, so that the statements below wait for a lock instead of failing.
        connection.execute("PRAGMA busy_timeout = 10000")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
        # Accounts and money: what was acknowledged survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite.Error as error:
        raise StorageError(f"cannot open the store {path}: {error}") from error
    return connection


def wrap(connection: Connection) -> sqlite_utils.Database:
    """Give a connection sqlite-utils' table helpers, without its plugins."""
    return sqlite_utils.Database(connection, execute_plugins=False)
