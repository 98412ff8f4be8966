"""The schema of ``appliance.db``: an append-only tuple of steps; the version is its length.

Never edit a step that was released; append one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlite_utils

from appliance.storage.errors import StorageError

Migration = Callable[[sqlite_utils.Database], None]


def migrate(database: sqlite_utils.Database, migrations: Sequence[Migration]) -> None:
    """Apply the missing steps, each with its version number in one transaction.

    Raises StorageError when the store was written by a newer program.
    """
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        raise StorageError(
            f"the store has schema {version}, this program knows up to {len(migrations)}: "
            "it was written by a newer release; use that release, or restore a backup"
        )
    for number, step in enumerate(migrations[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        try:
            step(database)
            database.execute(f"PRAGMA user_version = {number}")
            database.execute("COMMIT")
        except BaseException:
            if database.conn.in_transaction:
                database.execute("ROLLBACK")
            raise


def _accounts(database: sqlite_utils.Database) -> None:
    database.execute(
        """
        CREATE TABLE users (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            is_admin INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1)),
            created_at INTEGER NOT NULL
        ) STRICT
        """
    )
    # The key itself is never stored: digest = HMAC-SHA-256(pepper, key), hint = its ends, for people.
    database.execute(
        """
        CREATE TABLE keys (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
            hint TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER
        ) STRICT
        """
    )
    database.execute("CREATE INDEX keys_by_user ON keys (user_id)")


def _jobs(database: sqlite_utils.Database) -> None:
    database.execute(
        """
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
            progress_done INTEGER NOT NULL DEFAULT 0,
            progress_total INTEGER NOT NULL DEFAULT 0,
            arguments TEXT NOT NULL CHECK (json_valid(arguments)),
            result TEXT CHECK (result IS NULL OR json_valid(result)),
            error TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute("CREATE INDEX jobs_by_state ON jobs (state, id)")


MIGRATIONS: tuple[Migration, ...] = (_accounts, _jobs)
