"""Roles: what their users may do, and how much they may ask of each router."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
import sqlite_utils

from appliance.accounts.administrators import kept_administrator
from appliance.accounts.errors import AccountError
from appliance.accounts.permissions import PERMISSIONS
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database


class RouterLimit(msgspec.Struct, frozen=True):
    """How much of a ``type`` (tpm, tpd, rpm, rpd) may be asked of a router; None is unlimited, 0 forbidden."""

    router_id: int
    type: str
    value: int | None


# By type, for the routers that a role does not name.
DefaultLimits = dict[str, int | None]


class Role(msgspec.Struct, frozen=True):
    """A role and how many users have it. Times are UTC milliseconds."""

    id: int
    name: str
    users: int
    created_at: int
    updated_at: int
    permissions: list[str]
    limits: list[RouterLimit]
    default_limits: DefaultLimits


class RoleChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a role shall have; None keeps, anything else replaces all there was."""

    name: str | None = None
    permissions: list[str] | None = None
    limits: list[RouterLimit] | None = None
    default_limits: DefaultLimits | None = None


COLUMNS = {"id": "r.id", "name": "r.name", "created": "r.created_at", "updated": "r.updated_at"}

_SELECT = """
SELECT r.id, r.name, (SELECT count(*) FROM users u WHERE u.role_id = r.id) AS users, r.created_at, r.updated_at
FROM roles r
"""
# What follows the id of a role is in the order in which it is shown.
_LIMITS = """
SELECT role_id, router_id, type, value FROM role_limits
WHERE role_id IN (SELECT value FROM json_each(?)) ORDER BY role_id, router_id, instr('tpm tpd rpm rpd', type)
"""
_DEFAULT_LIMITS = """
SELECT role_id, type, value FROM role_default_limits
WHERE role_id IN (SELECT value FROM json_each(?)) ORDER BY role_id, instr('tpm tpd rpm rpd', type)
"""
_PERMISSIONS = (
    "SELECT role_id, permission FROM role_permissions WHERE role_id IN (SELECT value FROM json_each(?))"
)


class Roles:
    """The roles in the store; every change is in the audit log."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def create(self, actor: Actor, name: str, content: RoleChange) -> int:
        """Make a role and return its id. Raises AccountError (409 for a taken name, 404 for an unknown router)."""

        def insert(db: sqlite_utils.Database) -> int:
            if _taken(db, name):
                raise _exists()
            now = now_ms()
            cursor = db.execute(
                "INSERT INTO roles (name, created_at, updated_at) VALUES (?, ?, ?)", [name, now, now]
            )
            role_id = int(cursor.lastrowid or 0)
            given = msgspec.structs.replace(content, name=name)
            _fill(db, role_id, given)
            self._audit.append(db, actor, "role.create", str(role_id), _details(given))
            return role_id

        return await self._database.write(insert)

    async def list(self, clause: str) -> list[Role]:
        """Return a page of them; ``clause`` orders and limits by COLUMNS."""
        return await self._database.read(lambda db: _read(db, clause))

    async def get(self, role_id: int) -> Role:
        """Return one. Raises AccountError (404)."""
        found = await self._database.read(lambda db: _read(db, "WHERE r.id = ?", role_id))
        if not found:
            raise _not_found()
        return found[0]

    async def update(self, actor: Actor, role_id: int, change: RoleChange) -> None:
        """Change one. Raises AccountError: 404, 409 for a taken name or the last administrator's permission."""

        def update(db: sqlite_utils.Database) -> None:
            _require(db, role_id)
            details = _details(change)
            if not details:
                return
            if change.name is not None and _taken(db, change.name, other_than=role_id):
                raise _exists()
            with kept_administrator(db):
                db.execute(
                    "UPDATE roles SET name = ifnull(?, name), updated_at = ? WHERE id = ?",
                    [change.name, now_ms(), role_id],
                )
                _fill(db, role_id, change)
            self._audit.append(db, actor, "role.update", str(role_id), details)

        await self._database.write(update)

    async def delete(self, actor: Actor, role_id: int) -> None:
        """Remove one that no user has, with its limits and permissions. Raises AccountError (404, 409)."""

        def remove(db: sqlite_utils.Database) -> None:
            name = _require(db, role_id)
            if db.execute("SELECT 1 FROM users WHERE role_id = ?", [role_id]).fetchone():
                raise AccountError("Delete role with users is not allowed.", status=409)
            db.execute("DELETE FROM roles WHERE id = ?", [role_id])
            self._audit.append(db, actor, "role.delete", str(role_id), {"name": name})

        await self._database.write(remove)


def _read(db: sqlite_utils.Database, clause: str, *values: int) -> list[Role]:
    rows = list(db.query(f"{_SELECT} {clause}", list(values)))
    ids = [msgspec.json.encode([row["id"] for row in rows]).decode()]
    permissions: dict[int, list[str]] = defaultdict(list)
    for row in db.query(_PERMISSIONS, ids):
        permissions[row["role_id"]].append(row["permission"])
    limits: dict[int, list[RouterLimit]] = defaultdict(list)
    for row in db.query(_LIMITS, ids):
        limits[row.pop("role_id")].append(RouterLimit(**row))
    defaults: dict[int, DefaultLimits] = defaultdict(dict)
    for row in db.query(_DEFAULT_LIMITS, ids):
        defaults[row["role_id"]][row["type"]] = row["value"]
    return [
        Role(
            **row,
            permissions=sorted(permissions[row["id"]], key=PERMISSIONS.index),
            limits=limits[row["id"]],
            default_limits=defaults[row["id"]],
        )
        for row in rows
    ]


def _fill(db: sqlite_utils.Database, role_id: int, content: RoleChange) -> None:
    if content.permissions is not None:
        db.execute("DELETE FROM role_permissions WHERE role_id = ?", [role_id])
        for permission in dict.fromkeys(content.permissions):
            db.execute("INSERT INTO role_permissions VALUES (?, ?)", [role_id, permission])
    if content.limits is not None:
        _require_routers(db, {limit.router_id for limit in content.limits})
        db.execute("DELETE FROM role_limits WHERE role_id = ?", [role_id])
        for limit in content.limits:
            db.execute(
                "INSERT INTO role_limits VALUES (?, ?, ?, ?)",
                [role_id, limit.router_id, limit.type, limit.value],
            )
    if content.default_limits is not None:
        db.execute("DELETE FROM role_default_limits WHERE role_id = ?", [role_id])
        for kind, value in content.default_limits.items():
            db.execute("INSERT INTO role_default_limits VALUES (?, ?, ?)", [role_id, kind, value])


def _details(content: RoleChange) -> dict[str, object]:
    """Return what the audit log says of a change: the fields that were given."""
    given = msgspec.to_builtins(content)
    return {name: value for name, value in given.items() if value is not None}


def _require(db: sqlite_utils.Database, role_id: int) -> str:
    row = db.execute("SELECT name FROM roles WHERE id = ?", [role_id]).fetchone()
    if row is None:
        raise _not_found()
    return str(row[0])


def _require_routers(db: sqlite_utils.Database, router_ids: Iterable[int]) -> None:
    there = {row[0] for row in db.execute("SELECT id FROM routers")}
    if not there.issuperset(router_ids):
        raise AccountError("Model router not found.", status=404)


def _taken(db: sqlite_utils.Database, name: str, other_than: int = 0) -> bool:
    row = db.execute("SELECT 1 FROM roles WHERE name = ? AND id <> ?", [name, other_than]).fetchone()
    return row is not None


def _exists() -> AccountError:
    return AccountError("Role already exists.", status=409)


def _not_found() -> AccountError:
    return AccountError("Role not found.", status=404)
