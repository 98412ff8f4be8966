"""Users: who they are, the role that says what they may do, and the budget that they spend."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlite_utils

from appliance.accounts.administrators import kept_administrator
from appliance.accounts.errors import (
    AccountError,
    AuthenticationError,
    PermissionDeniedError,
    TakenEmailError,
)
from appliance.accounts.keys import end_sessions
from appliance.accounts.passwords import hash_password, verify_password
from appliance.accounts.user_removal import forget_counters, forget_records, remove_owned
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database

LONGEST_EMAIL = 320
LONGEST_PASSWORD = 1024
# The name under which OpenGateLLM's clients know the box's own key.
RESERVED_EMAIL = "master"
# Of a budget's unit in one of the currency.
MICROS = 1_000_000


class NewUser(msgspec.Struct, frozen=True, kw_only=True):
    """What a user is made of, besides the password.

    ``budget`` is millionths of the currency, None without a limit; times are UTC milliseconds.
    """

    email: str
    name: str | None
    role_id: int
    organization_id: int | None
    budget: int | None
    expires_at: int | None
    priority: int


class User(NewUser, frozen=True, kw_only=True):
    """A user in the store: what it is made of, and what the store knows besides."""

    id: int
    created_at: int
    updated_at: int


class UserChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a user shall be. None keeps the first four, and empties the others."""

    email: str | None
    name: str | None
    role_id: int | None
    priority: int | None
    organization_id: int | None
    budget: int | None
    expires_at: int | None


class UserFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which users to list; None does not matter."""

    role_id: int | None = None
    organization_id: int | None = None
    email: str | None = None


EVERYBODY = UserFilter()

COLUMNS = {"id": "u.id", "name": "u.name", "created": "u.created_at", "updated": "u.updated_at"}
ALL = "ORDER BY u.id"

_SELECT = """
SELECT u.id, u.email, u.name, u.role_id, u.organization_id, u.budget, u.expires_at, u.priority, u.created_at,
       u.updated_at
FROM users u
"""
_FILTER = """
WHERE (:role_id IS NULL OR u.role_id = :role_id)
  AND (:organization_id IS NULL OR u.organization_id = :organization_id)
  AND (:email IS NULL OR u.email = :email)
"""


class Users:
    """The users in the store; every change is in the audit log, passwords never are."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def create(self, actor: Actor, new: NewUser, password: str) -> int:
        """Make a user and return its id.

        Raises PermissionDeniedError (403) for the reserved e-mail, AccountError: 404 for an unknown role or
        organization, 409 for a taken e-mail.
        """

        def check(db: sqlite_utils.Database) -> None:
            _require_references(db, new.role_id, new.organization_id)
            require_free(db, new.email)

        # First without the price of hashing: scripts try again and again to make a user that is there.
        await self._database.read(check)
        password_hash = await hash_password(password)

        def insert(db: sqlite_utils.Database) -> int:
            check(db)
            now = now_ms()
            values = {**msgspec.structs.asdict(new), "password_hash": password_hash, "now": now}
            cursor = db.execute(
                "INSERT INTO users (email, name, password_hash, role_id, organization_id, budget, expires_at, "
                "priority, created_at, updated_at) VALUES (:email, :name, :password_hash, :role_id, "
                ":organization_id, :budget, :expires_at, :priority, :now, :now)",
                values,
            )
            user_id = int(cursor.lastrowid or 0)
            self._audit.append(db, actor, "user.create", str(user_id), _audited(msgspec.structs.asdict(new)))
            return user_id

        return await self._database.write(insert)

    async def list(self, clause: str, chosen: UserFilter = EVERYBODY) -> list[User]:
        """Return a page of the chosen; ``clause`` orders and limits by COLUMNS.

        Raises AccountError (404) when an e-mail is asked for that no chosen user has, on whatever page.
        """

        def read(db: sqlite_utils.Database) -> list[User]:
            values = msgspec.structs.asdict(chosen)
            found = [User(**row) for row in db.query(f"{_SELECT} {_FILTER} {clause}", values)]
            if not found and chosen.email is not None and not list(db.query(f"{_SELECT} {_FILTER}", values)):
                raise _not_found()
            return found

        return await self._database.read(read)

    async def get(self, user_id: int) -> User:
        """Return one. Raises AccountError (404)."""
        return await self._database.read(lambda db: _require(db, user_id))

    async def update(
        self,
        actor: Actor,
        user_id: int,
        change: UserChange,
        password: str | None = None,
        current_password: str | None = None,
    ) -> None:
        """Change one; a new password ends its sessions. ``current_password`` is checked when both are given.

        Raises AccountError (404 for the user, role or organization, 409 for a taken e-mail or the last
        administrator), AuthenticationError (401) for a wrong password, PermissionDeniedError (403) for the
        reserved e-mail.
        """

        def check(db: sqlite_utils.Database) -> User:
            user = _require(db, user_id)
            _require_references(db, change.role_id, change.organization_id)
            if change.email is not None:
                require_free(db, change.email, other_than=user_id)
            return user

        await self._database.read(check)
        checked: str | None = None
        password_hash: str | None = None
        if password is not None:
            if current_password is not None:
                checked = await self._verified(user_id, current_password)
            password_hash = await hash_password(password)

        def update(db: sqlite_utils.Database) -> None:
            before = check(db)
            if checked is not None and _password_hash(db, user_id) != checked:
                raise _wrong_password()
            with kept_administrator(db):
                values = {**msgspec.structs.asdict(change), "now": now_ms(), "id": user_id}
                db.execute(
                    "UPDATE users SET email = ifnull(:email, email), name = ifnull(:name, name), "
                    "role_id = ifnull(:role_id, role_id), priority = ifnull(:priority, priority), "
                    "organization_id = :organization_id, budget = :budget, expires_at = :expires_at, "
                    "updated_at = :now WHERE id = :id",
                    values,
                )
            details = _differences(before, _require(db, user_id))
            if password_hash is not None:
                _set_password(db, user_id, password_hash)
                details["password_changed"] = True
            self._audit.append(db, actor, "user.update", str(user_id), _audited(details))

        await self._database.write(update)

    async def reset_password(self, actor: Actor, email: str, password: str) -> int:
        """Give the user of that e-mail another password, end its sessions, and return its id.

        Raises AccountError: 404 for an unknown e-mail, 400 for an empty or too long password.
        """
        if not 1 <= len(password) <= LONGEST_PASSWORD:
            raise AccountError(f"a password has 1 to {LONGEST_PASSWORD} characters")
        found = await self.list(ALL, UserFilter(email=email))
        password_hash = await hash_password(password)

        def reset(db: sqlite_utils.Database) -> int:
            user = _require(db, found[0].id)
            _set_password(db, user.id, password_hash)
            self._audit.append(db, actor, "user.update", str(user.id), {"password_changed": True})
            return user.id

        return await self._database.write(reset)

    async def delete(self, actor: Actor, user_id: int) -> None:
        """Remove one with its keys, routers and providers; usage records stay, and name no user any more.

        Raises AccountError: 404, 409 for the last administrator.
        """

        def remove(db: sqlite_utils.Database) -> None:
            user = _require(db, user_id)
            with kept_administrator(db):
                details = {"email": user.email, **remove_owned(db, user_id)}
                forget_counters(db, user_id)
                db.execute("DELETE FROM users WHERE id = ?", [user_id])
            self._audit.append(db, actor, "user.delete", str(user_id), details)

        await self._database.write(remove)
        # Others write in between. What a crash leaves names a user that is gone, and no other ever gets its id.
        while await self._database.write(lambda db: forget_records(db, user_id)):
            pass
        # Records may have become sums meanwhile.
        await self._database.write(lambda db: forget_counters(db, user_id))

    async def _verified(self, user_id: int, password: str) -> str:
        """Return the hash that a password was checked against. Raises AuthenticationError (401)."""
        kept = await self._database.read(lambda db: _password_hash(db, user_id))
        if len(password) > LONGEST_PASSWORD or not await verify_password(password, kept) or kept is None:
            raise _wrong_password()
        return kept


def _differences(before: User, after: User) -> dict[str, Any]:
    """Return the fields that have another value now, with it."""
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {name: new[name] for name in new if name != "updated_at" and new[name] != old[name]}


def _audited(details: dict[str, Any]) -> dict[str, Any]:
    """Return a user's fields as the audit log has them: the budget in the currency, as administrators write it."""
    budget = details.get("budget")
    return details if budget is None else {**details, "budget": budget / MICROS}


def _set_password(db: sqlite_utils.Database, user_id: int, password_hash: str) -> None:
    db.execute(
        "UPDATE users SET password_hash = ?, updated_at = ? WHERE id = ?", [password_hash, now_ms(), user_id]
    )
    end_sessions(db, user_id)


def _require(db: sqlite_utils.Database, user_id: int) -> User:
    rows = list(db.query(f"{_SELECT} WHERE u.id = ?", [user_id]))
    if not rows:
        raise _not_found()
    return User(**rows[0])


def _require_references(db: sqlite_utils.Database, role_id: int | None, organization_id: int | None) -> None:
    if role_id is not None and not db.execute("SELECT 1 FROM roles WHERE id = ?", [role_id]).fetchone():
        raise AccountError("Role not found.", status=404)
    query = "SELECT 1 FROM organizations WHERE id = ?"
    if organization_id is not None and not db.execute(query, [organization_id]).fetchone():
        raise AccountError("Organization not found.", status=404)


def require_free(db: sqlite_utils.Database, email: str, other_than: int = 0) -> None:
    """Raise PermissionDeniedError for the reserved e-mail, TakenEmailError for one of another user."""
    if email == RESERVED_EMAIL:
        raise PermissionDeniedError("Reserved email.")
    if db.execute("SELECT 1 FROM users WHERE email = ? AND id <> ?", [email, other_than]).fetchone():
        raise TakenEmailError


def _password_hash(db: sqlite_utils.Database, user_id: int) -> str | None:
    row = db.execute("SELECT password_hash FROM users WHERE id = ?", [user_id]).fetchone()
    password_hash: str | None = None if row is None else row[0]
    return password_hash


def _wrong_password() -> AuthenticationError:
    return AuthenticationError("Invalid current password.", code="invalid_password")


def _not_found() -> AccountError:
    return AccountError("User not found.", status=404)
