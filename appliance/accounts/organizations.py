"""Organizations: names that users belong to."""

from __future__ import annotations

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database


class Organization(msgspec.Struct, frozen=True):
    """An organization and how many users it has. Times are UTC milliseconds."""

    id: int
    name: str
    users: int
    created_at: int
    updated_at: int


COLUMNS = {"id": "o.id", "name": "o.name", "created": "o.created_at", "updated": "o.updated_at"}

_SELECT = """
SELECT o.id, o.name, (SELECT count(*) FROM users u WHERE u.organization_id = o.id) AS users,
       o.created_at, o.updated_at
FROM organizations o
"""


class Organizations:
    """The organizations in the store; every change is in the audit log."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def create(self, actor: Actor, name: str) -> int:
        """Make an organization and return its id. Raises AccountError (409) when the name is taken."""

        def insert(db: sqlite_utils.Database) -> int:
            if _taken(db, name):
                raise AccountError("Organization already exists.", status=409)
            now = now_ms()
            cursor = db.execute(
                "INSERT INTO organizations (name, created_at, updated_at) VALUES (?, ?, ?)", [name, now, now]
            )
            self._audit.append(db, actor, "organization.create", str(cursor.lastrowid), {"name": name})
            return cursor.lastrowid or 0

        return await self._database.write(insert)

    async def list(self, clause: str) -> list[Organization]:
        """Return a page of them; ``clause`` orders and limits by COLUMNS."""
        return await self._database.read(
            lambda db: [Organization(**row) for row in db.query(f"{_SELECT} {clause}")]
        )

    async def get(self, organization_id: int) -> Organization:
        """Return one. Raises AccountError (404)."""
        rows = await self._database.read(
            lambda db: list(db.query(f"{_SELECT} WHERE o.id = ?", [organization_id]))
        )
        if not rows:
            raise _not_found()
        return Organization(**rows[0])

    async def rename(self, actor: Actor, organization_id: int, name: str | None) -> None:
        """Give it another name; None keeps it. Raises AccountError (404, 409)."""

        def update(db: sqlite_utils.Database) -> None:
            _require(db, organization_id)
            if name is None:
                return
            if _taken(db, name, other_than=organization_id):
                raise AccountError("Organization name already taken. Please, choose another one.", status=409)
            db.execute(
                "UPDATE organizations SET name = ?, updated_at = ? WHERE id = ?",
                [name, now_ms(), organization_id],
            )
            self._audit.append(db, actor, "organization.update", str(organization_id), {"name": name})

        await self._database.write(update)

    async def delete(self, actor: Actor, organization_id: int) -> None:
        """Remove one without users. Raises AccountError (404, 409)."""

        def remove(db: sqlite_utils.Database) -> None:
            _require(db, organization_id)
            if db.execute("SELECT 1 FROM users WHERE organization_id = ?", [organization_id]).fetchone():
                raise AccountError("Delete organization with users is not allowed.", status=409)
            db.execute("DELETE FROM organizations WHERE id = ?", [organization_id])
            self._audit.append(db, actor, "organization.delete", str(organization_id))

        await self._database.write(remove)


def _require(db: sqlite_utils.Database, organization_id: int) -> None:
    if not db.execute("SELECT 1 FROM organizations WHERE id = ?", [organization_id]).fetchone():
        raise _not_found()


def _taken(db: sqlite_utils.Database, name: str, other_than: int = 0) -> bool:
    row = db.execute("SELECT 1 FROM organizations WHERE name = ? AND id <> ?", [name, other_than]).fetchone()
    return row is not None


def _not_found() -> AccountError:
    return AccountError("Organization not found.", status=404)
