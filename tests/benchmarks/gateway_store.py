"""A store with as many users and keys as a large organisation has."""

from __future__ import annotations

from pathlib import Path

import sqlite_utils

from appliance.accounts.keys import Keyring
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS, administrator_role

KEYS_A_USER = 10


def filled(path: Path, pepper: bytes, users: int) -> tuple[Database, list[str]]:
    """Make a store of ``users`` users of one role with ten keys each; return it and some of the keys' texts."""
    database = Database.open(path, MIGRATIONS)
    keyring = Keyring(database, pepper)

    def fill(db: sqlite_utils.Database) -> None:
        role = administrator_role(db, now=1)
        db.conn.executemany(
            "INSERT INTO users (id, email, role_id, budget, created_at, updated_at) VALUES (?, ?, ?, ?, 1, 1)",
            [(user, f"user-{user}@example.org", role, 10**15) for user in range(1, users + 1)],
        )
        db.conn.executemany(
            "INSERT INTO keys (user_id, name, digest, hint, created_at) VALUES (?, 'bench', ?, '', 1)",
            [
                (user, keyring.digest(key_text(user, number)))
                for user in range(1, users + 1)
                for number in range(KEYS_A_USER)
            ],
        )
        db.execute(
            "INSERT INTO routers (id, type, cost_prompt_tokens, cost_completion_tokens, created_at, updated_at) "
            "VALUES (1, 'text-generation', 1, 2, 1, 1)"
        )
        db.execute("INSERT INTO router_names VALUES ('trivial', 1, 0)")
        db.execute(
            "INSERT INTO providers (router_id, type, url, model_name, created_at) "
            "VALUES (1, 'vllm', 'http://127.0.0.1:1/', 'trivial', 1)"
        )

    database.write_sync(fill)
    step = max(1, users // 1000)
    return database, [key_text(user, user % KEYS_A_USER) for user in range(1, users + 1, step)]


def key_text(user: int, number: int) -> str:
    """Return the text of a user's key."""
    return f"sk-bench-{user:08d}-{number:02d}"
