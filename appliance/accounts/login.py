"""Logging in: an e-mail and a password for a key that lives an hour."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError, AuthenticationError
from appliance.accounts.issued_keys import LATEST_MS, NewKey
from appliance.accounts.keys import Keyring, end_sessions, new_key
from appliance.accounts.passwords import hash_password, is_outdated, verify_password
from appliance.accounts.throttle import Attempt, Throttle
from appliance.accounts.users import LONGEST_PASSWORD, RESERVED_EMAIL
from appliance.audit.log import SERVICE, Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database

SESSION_NAME = "playground"
# Failed logins that have a line of their own in the audit log; of more, how many there were.
LINES_AN_HOUR = 100
HOUR_MS = 3_600_000

_LOGIN = "SELECT id, email, password_hash FROM users WHERE email = ?"


class PasswordHolder(msgspec.Struct, frozen=True):
    """Whose password is tried; ``password_hash`` None when there is none."""

    id: int
    email: str
    password_hash: str | None


class WrongPasswordError(AccountError):
    """The password is not this user's, or there is no such user: which of them is not said."""

    status = 401
    type = "authentication_error"
    code = "invalid_password"

    def __init__(self) -> None:
        super().__init__("Invalid current password.")


class Logins:
    """The logins of a running service. Used on the event loop only."""

    def __init__(self, database: Database, keyring: Keyring, audit: AuditLog, session_seconds: int) -> None:
        """``session_seconds`` is how long the key of a login lives."""
        self.throttle = Throttle(database, keyring)
        self._database = database
        self._keyring = keyring
        self._audit = audit
        self._session_ms = session_seconds * 1000
        self._hour = 0
        self._failures_of_hour = 0

    async def login(self, email: str, password: str, source: str, *, master: bool = False) -> NewKey:
        """Return a new key of the user, in place of those that its logins before gave.

        With ``master`` the reserved e-mail and the bootstrap key as its password give that key, as user 0.
        Raises WrongPasswordError (401), TooManyAttemptsError (429), OverloadedError (503).
        """
        async with self.throttle.turn(email, source) as attempt:
            if master and email == RESERVED_EMAIL:
                return await self._master_login(password, source, attempt)
            user = await self._database.read(lambda db: _holder(db, email))
            stored = None if user is None else user.password_hash
            # As much work whether or not the user is there and has a password.
            if not await self._matches(password, stored) or user is None:
                await self.refuse(attempt, source, user)
                raise WrongPasswordError
            return await self._open_session(user, password, source, attempt)

    async def check(self, user_id: int, password: str, source: str) -> str | None:
        """Return the hash that a user's present password was checked against.

        Raises WrongPasswordError, TooManyAttemptsError, OverloadedError like a login, with which it shares its
        counts.
        """
        user = await self._database.read(lambda db: _holder_of_id(db, user_id))
        email = "" if user is None else user.email
        async with self.throttle.turn(email, source) as attempt:
            if user is None or not await self._matches(password, user.password_hash):
                await self.refuse(attempt, source, user)
                raise WrongPasswordError
            await self._database.write(attempt.succeeded)
            return user.password_hash

    async def refuse(self, attempt: Attempt, source: str, user: PasswordHolder | None) -> None:
        """Count a wrong password, and put it into the audit log, where it names nobody who is not there."""
        line = self._failure_line(source, "unknown" if user is None else str(user.id))

        def write(db: sqlite_utils.Database) -> None:
            attempt.failed(db)
            if line is not None:
                line(db)

        await self._database.write(write)

    async def _matches(self, password: str, password_hash: str | None) -> bool:
        if len(password) > LONGEST_PASSWORD:
            password, password_hash = "", None
        return await verify_password(password, password_hash)

    async def _master_login(self, password: str, source: str, attempt: Attempt) -> NewKey:
        await self._matches(password, None)
        try:
            account = self._keyring.authenticate(password)
        except AuthenticationError:
            account = None
        if account is None or not account.is_master:
            await self.refuse(attempt, source, None)
            raise WrongPasswordError
        actor = Actor(account.user_id, account.email, source)

        def write(db: sqlite_utils.Database) -> None:
            attempt.succeeded(db)
            self._audit.append(db, actor, "user.login", str(account.user_id), {"key": account.key_id})

        await self._database.write(write)
        return NewKey(0, password)

    async def _open_session(
        self, user: PasswordHolder, password: str, source: str, attempt: Attempt
    ) -> NewKey:
        stored = user.password_hash
        renewed = await hash_password(password) if stored is not None and is_outdated(stored) else stored
        key = new_key()

        def write(db: sqlite_utils.Database) -> int | None:
            if _holder(db, user.email) != user:  # another password since: this one is no longer right
                return None
            attempt.succeeded(db)
            if renewed != stored:
                db.execute("UPDATE users SET password_hash = ? WHERE id = ?", [renewed, user.id])
            end_sessions(db, user.id)
            expires_at = min(now_ms() + self._session_ms, LATEST_MS)
            key_id = self._keyring.insert(db, user.id, SESSION_NAME, key, expires_at, "session")
            actor = Actor(user.id, user.email, source)
            self._audit.append(db, actor, "user.login", str(user.id), {"key": key_id})
            return key_id

        key_id = await self._database.write(write)
        if key_id is None:
            raise WrongPasswordError
        return NewKey(key_id, key)

    def _failure_line(self, source: str, target: str) -> Callable[[sqlite_utils.Database], None] | None:
        """Return what writes the audit line of a failure, None when this hour has enough of them."""
        hour = now_ms() // HOUR_MS
        uncounted = 0
        if hour != self._hour:
            uncounted = max(0, self._failures_of_hour - LINES_AN_HOUR)
            self._hour, self._failures_of_hour = hour, 0
        self._failures_of_hour += 1
        if self._failures_of_hour > LINES_AN_HOUR:
            return None

        def append(db: sqlite_utils.Database) -> None:
            if uncounted:
                details = {"further_failures": uncounted}
                self._audit.append(db, SERVICE, "login.refuse", "others", details)
            self._audit.append(db, Actor(None, "unknown", source), "login.refuse", target)

        return append


def _holder(db: sqlite_utils.Database, email: str) -> PasswordHolder | None:
    row = db.execute(_LOGIN, [email]).fetchone()
    return None if row is None else PasswordHolder(*row)


def _holder_of_id(db: sqlite_utils.Database, user_id: int) -> PasswordHolder | None:
    row = db.execute("SELECT id, email, password_hash FROM users WHERE id = ?", [user_id]).fetchone()
    return None if row is None else PasswordHolder(*row)
