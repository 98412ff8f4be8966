"""API keys: random, shown once, stored as an HMAC, looked up by it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
from typing import Literal

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError, AuthenticationError
from appliance.clock import now_ms
from appliance.storage.database import Database

ALPHABET = string.ascii_letters + string.digits
RANDOM_CHARACTERS = 43  # 62^43 > 2^256
MAX_PRESENTED_KEY = 1024
# Of shorter keys, both ends of eight characters would be too much to show.
SHORTEST_SHOWN = 40

_ACCOUNT = """
SELECT u.id, k.id, k.kind, k.name, u.email, u.name, u.role_id, u.organization_id,
       (SELECT group_concat(p.permission, ' ') FROM role_permissions p WHERE p.role_id = u.role_id),
       u.budget, u.priority, u.expires_at
FROM keys k JOIN users u ON u.id = k.user_id
WHERE k.digest = ? AND (k.expires_at IS NULL OR k.expires_at > ?)
"""


KeyKind = Literal["key", "session", "bootstrap"]


class Account(msgspec.Struct, frozen=True):
    """Who a request comes from: a key, its user and what the user's role allows.

    ``budget`` is millionths of the currency, None without a limit; times are UTC milliseconds.
    """

    user_id: int
    key_id: int
    kind: KeyKind
    key_name: str
    email: str
    name: str | None
    role_id: int
    organization_id: int | None
    permissions: frozenset[str]
    budget: int | None
    priority: int
    expires_at: int | None

    @property
    def cache_scope(self) -> str:
        """Whose prompts may share cached prefixes with this account's."""
        return f"user:{self.user_id}"

    @property
    def is_master(self) -> bool:
        """Whether this is the box's own key, of somebody who is still an administrator."""
        return self.kind == "bootstrap" and "admin" in self.permissions and not self.expired

    @property
    def expired(self) -> bool:
        """Whether the user may no longer do anything but read about itself."""
        return self.expires_at is not None and self.expires_at <= now_ms()


class Keyring:
    """The keys in the store, under one pepper (32 bytes, derived from the box's secret)."""

    def __init__(self, database: Database, pepper: bytes) -> None:
        self._database = database
        self._pepper = pepper

    def authenticate(self, presented: str) -> Account:
        """Return the account of a key, also when it is written as ``cmp_`` + key.

        Raises AuthenticationError when no live key matches.
        """
        if presented and len(presented) <= MAX_PRESENTED_KEY:
            for candidate in {presented: None, presented.removeprefix("cmp_"): None}:
                account = self._find(self.digest(candidate))
                if account is not None:
                    return account
        raise AuthenticationError("Invalid API key.")

    def digest(self, key: str) -> bytes:
        """Return HMAC-SHA-256(pepper, key), 32 bytes."""
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogateescape"), hashlib.sha256)

    def insert(
        self,
        db: sqlite_utils.Database,
        user_id: int,
        name: str,
        key: str,
        expires_at: int | None = None,
        kind: KeyKind = "key",
    ) -> int:
        """Store ``key`` inside a write task and return its id. Raises AccountError (404) for an unknown user."""
        if not db.execute("SELECT 1 FROM users WHERE id = ?", [user_id]).fetchone():
            raise AccountError("User not found.", status=404)
        cursor = db.execute(
            "INSERT INTO keys (user_id, kind, name, digest, hint, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [user_id, kind, name, self.digest(key), _hint(key), now_ms(), expires_at],
        )
        return cursor.lastrowid or 0

    def replace(self, db: sqlite_utils.Database, key_id: int, key: str) -> None:
        """Give a stored key another text inside a write task: the one before is dead after it."""
        db.execute(
            "UPDATE keys SET digest = ?, hint = ? WHERE id = ?", [self.digest(key), _hint(key), key_id]
        )

    def _find(self, digest: bytes) -> Account | None:
        # One indexed look-up (tens of microseconds): cheaper on the loop than a thread, and always current.
        row = self._database.read_sync(lambda db: db.execute(_ACCOUNT, [digest, now_ms()]).fetchone())
        if row is None:
            return None
        values = dict(zip(Account.__struct_fields__, row, strict=True))
        return Account(**{**values, "permissions": frozenset((row[8] or "").split())})


def end_sessions(db: sqlite_utils.Database, user_id: int) -> None:
    """Delete the keys that a user's logins gave, inside a write task: as after a change of the password."""
    db.execute("DELETE FROM keys WHERE user_id = ? AND kind = 'session'", [user_id])


def new_key() -> str:
    """Return a fresh key: ``sk-`` and 43 base62 characters."""
    return "sk-" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))


def _hint(key: str) -> str:
    """Mask a key as the APIs show it; a short one (a bootstrap file's) keeps more to itself."""
    shown = 8 if len(key) >= SHORTEST_SHOWN else 2
    return f"{key[:shown]}...{key[-shown:]}"
