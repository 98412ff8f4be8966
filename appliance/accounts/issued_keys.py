"""Making, listing, replacing and deleting keys: an administrator those of all users, a user its own."""

from __future__ import annotations

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError
from appliance.accounts.keys import KeyKind, Keyring, new_key
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database

NAME_LENGTH = 128
# Far beyond what anybody uses: a program that makes keys without end must not fill the store.
KEYS_OF_A_USER = 10_000
DAY_MS = 86_400_000
# The year 9999: later times mean the same, and never overflow.
LATEST_MS = 253_402_300_799_000

COLUMNS = {"id": "k.id", "name": "k.name", "created": "k.created_at"}

_SELECT = """
SELECT k.id, k.user_id, u.email, k.kind, k.name, k.hint, k.created_at, k.expires_at
FROM keys k JOIN users u ON u.id = k.user_id
"""
_LIVE = "(k.expires_at IS NULL OR k.expires_at > :now)"


class IssuedKey(msgspec.Struct, frozen=True):
    """A key as it may be shown: never the key itself. Times are UTC milliseconds."""

    id: int
    user_id: int
    email: str
    kind: KeyKind
    name: str
    hint: str
    created_at: int
    expires_at: int | None


class NewKey(msgspec.Struct, frozen=True):
    """A key just made; the only time its text is known."""

    id: int
    key: str


class IssuedKeys:
    """The keys in the store; every change is in the audit log, on disk when it returns.

    ``user_id`` narrows a method to the keys of one user: those of others are not found. Expired keys are
    neither listed nor found.
    """

    def __init__(self, database: Database, keyring: Keyring, audit: AuditLog, max_days: int) -> None:
        """``max_days`` is the longest life of a key, 0 without a bound."""
        self._database = database
        self._keyring = keyring
        self._audit = audit
        self._max_days = max_days

    async def create(self, actor: Actor, user_id: int, name: str, expires_at: int | None = None) -> NewKey:
        """Make a key for a user.

        Raises AccountError: 400 when it would live too long, 404 for an unknown user.
        """
        expiry = self._bounded(expires_at)
        key = new_key()

        def insert(db: sqlite_utils.Database) -> int:
            count = db.execute("SELECT count(*) FROM keys WHERE user_id = ?", [user_id]).fetchone()[0]
            if count >= KEYS_OF_A_USER:
                raise AccountError(f"A user cannot have more than {KEYS_OF_A_USER} keys.")
            key_id = self._keyring.insert(db, user_id, name, key, expiry)
            details = {"user": user_id, "name": name, "expires_at": expiry}
            self._audit.append(db, actor, "key.create", str(key_id), details)
            return key_id

        return NewKey(await self._database.write(insert), key)

    async def list(self, clause: str, user_id: int | None = None) -> list[IssuedKey]:
        """Return a page of the live keys; ``clause`` orders and limits by COLUMNS."""
        owned = "" if user_id is None else " AND k.user_id = :user"
        query = f"{_SELECT} WHERE {_LIVE}{owned} {clause}"
        parameters = {"now": now_ms(), "user": user_id}
        return await self._database.read(lambda db: [IssuedKey(**row) for row in db.query(query, parameters)])

    async def get(self, key_id: int, user_id: int | None = None) -> IssuedKey:
        """Return a live key. Raises AccountError (404)."""
        return await self._database.read(lambda db: _require(db, key_id, user_id))

    async def delete(self, actor: Actor, key_id: int, user_id: int | None = None) -> None:
        """Delete a live key; no request is accepted with it once this returns. Raises AccountError (404)."""

        def delete(db: sqlite_utils.Database) -> None:
            key = _require(db, key_id, user_id)
            db.execute("DELETE FROM keys WHERE id = ?", [key_id])
            details = {"user": key.user_id, "name": key.name}
            self._audit.append(db, actor, "key.delete", str(key_id), details)

        await self._database.write(delete)

    async def regenerate(self, actor: Actor, key_id: int, user_id: int | None = None) -> NewKey:
        """Give a live key another text; its name, rights and expiry stay, the text before dies at once.

        Raises AccountError (404).
        """
        text = new_key()

        def replace(db: sqlite_utils.Database) -> None:
            key = _require(db, key_id, user_id)
            self._keyring.replace(db, key_id, text)
            details = {"user": key.user_id, "name": key.name}
            self._audit.append(db, actor, "key.regenerate", str(key_id), details)

        await self._database.write(replace)
        return NewKey(key_id, text)

    def _bounded(self, expires_at: int | None) -> int | None:
        if not self._max_days:
            return expires_at
        latest = min(now_ms() + self._max_days * DAY_MS, LATEST_MS)
        if expires_at is None:
            return latest
        if expires_at > latest:
            raise AccountError(
                f"Token expiration timestamp cannot be greater than {self._max_days} days from now."
            )
        return expires_at


def _require(db: sqlite_utils.Database, key_id: int, user_id: int | None) -> IssuedKey:
    rows = list(db.query(f"{_SELECT} WHERE k.id = :id AND {_LIVE}", {"id": key_id, "now": now_ms()}))
    if not rows or user_id not in (None, rows[0]["user_id"]):
        raise AccountError("Token not found.", status=404)
    return IssuedKey(**rows[0])
