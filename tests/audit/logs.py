"""A log for tests, and somebody who changes it behind its back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.audit.log import Actor, AuditLog
from appliance.audit.verification import Verification, verify
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS
from appliance.storage.sqlite import connect

KEY = b"k" * 32
ANNA = Actor(7, "anna@example.org", "10.0.0.7")
TRIGGERS = ("audit_keeps", "audit_stands", "audit_grows")


def opened(path: Path) -> Database:
    return Database.open(path, MIGRATIONS)


def fill(database: Database, lines: int, key: bytes = KEY) -> None:
    """Append lines as the service does."""
    log = AuditLog(key)

    def append(db: Any) -> None:
        for number in range(lines):
            log.append(db, ANNA, "user.create", str(number), {"name": f"user {number}"})

    database.write_sync(append)


def tamper(path: Path, *statements: str) -> None:
    """Change the file as somebody would who can write it: without the triggers."""
    connection = connect(path)
    for name in TRIGGERS:
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def verified(database: Database, *heads: Any) -> Verification:
    return database.read_sync(lambda db: verify(db, KEY, heads))
