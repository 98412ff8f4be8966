"""A store of the release before there were roles, opened by this one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from appliance.accounts.keys import Keyring
from appliance.accounts.secret import derive
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS
from tests.service import running_service

SECRET = bytes(range(32))
# The schema as that release made it, written out: what its steps are now must not matter.
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    is_admin INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    hint TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;
CREATE INDEX keys_by_user ON keys (user_id);
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
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, id);
PRAGMA user_version = 2;
"""
# (user, name, is administrator), and (user, name of the key, its text, expiry).
USERS = [(1, "guest", 0), (2, "administrator", 1), (5, "second", 1)]
KEYS = [
    (1, "bootstrap", "sk-guest-calls-it-bootstrap", None),
    (2, "bootstrap", "sk-the-first-boot-made-this", None),
    (2, "bootstrap", "sk-named-so-later-on-by-cli", None),
    (5, "laptop", "sk-second-administrators-key", None),
    (5, "old", "sk-expired-in-the-year-1970", 1000),
]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Make a data directory as that release left it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "secret.key").write_bytes(SECRET)
    keyring = Keyring(None, derive(SECRET, "api keys"))  # type: ignore[arg-type] # for its digests alone
    with closing(sqlite3.connect(folder / "appliance.db")) as db:
        db.executescript(SCHEMA)
        db.executemany("INSERT INTO users VALUES (?, ?, ?, 1700000000000)", USERS)
        db.executemany(
            "INSERT INTO keys (user_id, name, digest, hint, created_at, expires_at) VALUES (?, ?, ?, ?, 7, ?)",
            [(user, name, keyring.digest(key), key[:4], expiry) for user, name, key, expiry in KEYS],
        )
        db.execute(
            "INSERT INTO jobs (kind, state, arguments, created_at, updated_at) "
            "VALUES ('pack.install', 'done', '{}', 1, 1)"
        )
        db.execute("DELETE FROM users WHERE id = 9")
        db.commit()
    return folder


def test_users_and_keys_keep_their_ids_and_get_no_more_rights(data_dir: Path) -> None:
    database = Database.open(data_dir / "appliance.db", MIGRATIONS)
    keyring = Keyring(database, derive(SECRET, "api keys"))
    found = [keyring.authenticate(key) for *_, key, expiry in KEYS if expiry is None]
    assert [(each.user_id, each.kind, "admin" in each.permissions) for each in found] == [
        (1, "key", False),
        (2, "bootstrap", True),
        (2, "key", True),
        (5, "key", True),
    ]
    assert [each.email for each in found[:2]] == ["user-1@localhost", "administrator@localhost"]

    def whole(db: object) -> list[object]:
        run = db.execute  # type: ignore[attr-defined]
        return [
            run("PRAGMA foreign_key_check").fetchall(),
            run("PRAGMA integrity_check").fetchone()[0],
            run("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%old\\_%' ESCAPE '\\'").fetchone()[0],
            run("PRAGMA user_version").fetchone()[0],
            run("SELECT count(*) FROM keys").fetchone()[0],
            run("SELECT count(*) FROM jobs").fetchone()[0],
        ]

    assert database.read_sync(whole) == [[], "ok", 0, len(MIGRATIONS), len(KEYS), 1]
    database.close()


def test_the_service_starts_over_it_and_its_keys_open_what_they_opened(data_dir: Path) -> None:
    guest, first, _, second, expired = (key for *_, key, _ in KEYS)
    with running_service(data_dir, key=None) as service:

        def status(key: str, path: str) -> int:
            return httpx.get(
                f"{service.base_url}{path}", headers={"X-API-Key": key}, trust_env=False
            ).status_code

        assert [status(key, "/v1/models") for key in (guest, first, second, expired)] == [200, 200, 200, 401]
        assert [status(key, "/v1/admin/users") for key in (guest, first, second)] == [403, 200, 200]
        master = httpx.get(
            f"{service.base_url}/opengatellm/v1/me/info",
            headers={"Authorization": f"Bearer {first}"},
            trust_env=False,
        )
        assert (master.json()["id"], master.json()["email"]) == (0, "master")
        audit = httpx.get(f"{service.base_url}/v1/admin/audit", headers={"X-API-Key": first}, trust_env=False)
        assert audit.status_code == 200, audit.text
        assert "user.bootstrap" not in json.dumps(audit.json())


def test_a_store_is_brought_up_to_date_only_once(data_dir: Path) -> None:
    for _ in range(2):
        database = Database.open(data_dir / "appliance.db", MIGRATIONS)
        roles = database.read_sync(
            lambda db: [row[0] for row in db.execute("SELECT name FROM roles ORDER BY id")]
        )
        assert roles == ["administrator", "user"]
        database.close()
