"""First boot: one administrator and its key."""

from __future__ import annotations

from pathlib import Path

import sqlite_utils

from appliance.accounts.errors import AccountError
from appliance.accounts.keys import Keyring, new_key
from appliance.audit.log import SERVICE, AuditLog
from appliance.clock import now_ms
from appliance.disk import read_beginning
from appliance.storage.database import Database
from appliance.storage.migrations import administrator_role

ADMINISTRATOR = "administrator"
FIRST_EMAIL = "administrator@localhost"
ADMINISTRATORS = (
    "SELECT count(*) FROM users u JOIN role_permissions p ON p.role_id = u.role_id "
    "WHERE p.permission = 'admin'"
)
SHORTEST_KEY, LONGEST_KEY = 16, 512


def bootstrap(
    database: Database, keyring: Keyring, key_file: Path | None, audit: AuditLog | None = None
) -> str | None:
    """Make the first administrator and its key when there is none yet.

    Returns the new key when it was made here and must be shown once, None otherwise: an
    administrator exists already, or the key came from ``key_file``, whose owner knows it.
    Raises AccountError when the file holds no usable key; nothing is written then.
    """
    if database.read_sync(administrators):
        return None
    key = read_key_file(key_file) if key_file is not None else new_key()

    def create(db: sqlite_utils.Database) -> None:
        if administrators(db):
            raise AccountError("an administrator exists already")
        now = now_ms()
        cursor = db.execute(
            "INSERT INTO users (email, name, role_id, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
            [FIRST_EMAIL, ADMINISTRATOR, administrator_role_of(db), now, now],
        )
        keyring.insert(db, cursor.lastrowid or 0, "bootstrap", key, kind="bootstrap")
        if audit is not None:
            audit.append(db, SERVICE, "user.bootstrap", str(cursor.lastrowid), {"email": FIRST_EMAIL})

    database.write_sync(create)
    return key if key_file is None else None


def prepare(database: Database) -> None:
    """Make the role of the first administrator, where there is none yet: the service reads the roles before it is made.

    Raises StorageError.
    """
    if not database.read_sync(administrators):
        database.write_sync(administrator_role_of)


def administrators(db: sqlite_utils.Database) -> int:
    """Return how many users may do everything."""
    return int(db.execute(ADMINISTRATORS).fetchone()[0])


def administrator_role_of(db: sqlite_utils.Database) -> int:
    """Return the id of the role that may do everything, made inside a write task when it is not there."""
    role = db.execute("SELECT id FROM roles WHERE name = ?", [ADMINISTRATOR]).fetchone()
    return int(role[0]) if role else administrator_role(db, now_ms())


def read_key_file(path: Path) -> str:
    """Return the key in a bootstrap file: its content, trimmed. Raises AccountError when it is unusable."""
    try:
        content = read_beginning(path, LONGEST_KEY + 1024)
    except OSError as error:
        raise AccountError(f"cannot read the bootstrap key file {path}: {error.strerror}") from error
    try:
        key = content.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY or not all(33 <= ord(c) <= 126 for c in key):
        raise AccountError(
            f"the bootstrap key file {path} must hold {SHORTEST_KEY} to {LONGEST_KEY} printable ASCII characters "
            "without blanks"
        )
    return key
