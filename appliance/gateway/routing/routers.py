"""Routers as administrators make, change and remove them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlite_utils

from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.gateway.routing.errors import RoutingError
from appliance.gateway.routing.pairing import require_pairing, unpaired
from appliance.gateway.routing.records import ModelType, Strategy
from appliance.storage.database import Database


class RouterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A router to be made. Prices are per million tokens; ``user_id`` None is the box itself."""

    name: str
    type: ModelType
    aliases: tuple[str, ...] = ()
    load_balancing_strategy: Strategy = "shuffle"
    cost_prompt_tokens: float = 0.0
    cost_completion_tokens: float = 0.0
    user_id: int | None = None


class RouterChange(msgspec.Struct, frozen=True, kw_only=True):
    """What of a router is to change; None keeps, ``aliases`` replaces all of them."""

    name: str | None = None
    type: ModelType | None = None
    aliases: tuple[str, ...] | None = None
    load_balancing_strategy: Strategy | None = None
    cost_prompt_tokens: float | None = None
    cost_completion_tokens: float | None = None


# The fields of a change that are columns of the table.
_COLUMNS = ("type", "load_balancing_strategy", "cost_prompt_tokens", "cost_completion_tokens")


class Routers:
    """The routers in the store; every change is in the audit log.

    The gateway must ``reload`` after a change, before it is acknowledged.
    """

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def create(self, actor: Actor, spec: RouterSpec) -> int:
        """Make a router without providers and return its id.

        Raises RoutingError (409) when the name or an alias is the name or alias of another.
        """

        def insert(db: sqlite_utils.Database) -> int:
            if _taken(db, [spec.name]):
                raise RoutingError(f"Router {spec.name} already exists.", status=409)
            aliases = tuple(dict.fromkeys(spec.aliases))
            if taken := [alias for alias in aliases if alias == spec.name] + _taken(db, aliases):
                raise RoutingError(f"Following aliases already exist: '{taken}'", status=409)
            now = now_ms()
            cursor = db.execute(
                "INSERT INTO routers (type, user_id, load_balancing_strategy, cost_prompt_tokens, "
                "cost_completion_tokens, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    spec.type,
                    spec.user_id,
                    spec.load_balancing_strategy,
                    spec.cost_prompt_tokens,
                    spec.cost_completion_tokens,
                    now,
                    now,
                ],
            )
            router_id = cursor.lastrowid or 0
            _name(db, router_id, [spec.name, *aliases])
            details = {name: getattr(spec, name) for name in ("name", "aliases", *_COLUMNS)}
            self._audit.append(db, actor, "router.create", str(router_id), details)
            return router_id

        return await self._database.write(insert)

    async def update(self, actor: Actor, router_id: int, change: RouterChange) -> None:
        """Change a router. Raises RoutingError: 404, 409 for a taken name, 400 for a type its providers cannot do."""

        def apply(db: sqlite_utils.Database) -> None:
            if not _exists(db, router_id):
                raise RoutingError("Model router not found.")
            details: dict[str, Any] = {
                name: value
                for name in RouterChange.__struct_fields__
                if (value := getattr(change, name)) is not None
            }
            if change.type is not None:
                _check_providers(db, router_id, change.type)
            if change.name is not None or change.aliases is not None:
                _rename(db, router_id, change)
            for column in _COLUMNS:
                if column in details:
                    db.execute(
                        f"UPDATE routers SET {column} = ? WHERE id = ?",  # noqa: S608 - a constant
                        [details[column], router_id],
                    )
            if details:
                db.execute("UPDATE routers SET updated_at = ? WHERE id = ?", [now_ms(), router_id])
                self._audit.append(db, actor, "router.update", str(router_id), details)

        await self._database.write(apply)

    async def delete(self, actor: Actor, router_id: int) -> None:
        """Remove a router, its providers, names, and the limits on it. Raises RoutingError (404)."""

        def remove(db: sqlite_utils.Database) -> None:
            if not _exists(db, router_id):
                raise RoutingError(f"Model router {router_id} not found.")
            name = _names(db, router_id)[0]
            db.execute("DELETE FROM routers WHERE id = ?", [router_id])
            self._audit.append(db, actor, "router.delete", str(router_id), {"name": name})

        await self._database.write(remove)


def _rename(db: sqlite_utils.Database, router_id: int, change: RouterChange) -> None:
    names = _names(db, router_id)
    name = names[0] if change.name is None else change.name
    aliases = names[1:] if change.aliases is None else list(dict.fromkeys(change.aliases))
    if name in aliases or _taken(db, [name, *aliases], other_than=router_id):
        raise RoutingError("Name conflict with existing router or alias.", status=409)
    db.execute("DELETE FROM router_names WHERE router_id = ?", [router_id])
    _name(db, router_id, [name, *aliases])


def _check_providers(db: sqlite_utils.Database, router_id: int, router_type: ModelType) -> None:
    current = db.execute("SELECT type FROM routers WHERE id = ?", [router_id]).fetchone()[0]
    if current == router_type:
        return
    rows = db.execute("SELECT DISTINCT type FROM providers WHERE router_id = ?", [router_id])
    for (kind,) in rows.fetchall():
        if kind == "local":  # a pack does one task, whatever its router is called
            raise unpaired(kind, router_type)
        require_pairing(kind, router_type)


def _exists(db: sqlite_utils.Database, router_id: int) -> bool:
    return db.execute("SELECT 1 FROM routers WHERE id = ?", [router_id]).fetchone() is not None


def _names(db: sqlite_utils.Database, router_id: int) -> list[str]:
    rows = db.execute("SELECT name FROM router_names WHERE router_id = ? ORDER BY place", [router_id])
    return [row[0] for row in rows.fetchall()]


def _name(db: sqlite_utils.Database, router_id: int, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        db.execute("INSERT INTO router_names VALUES (?, ?, ?)", [name, router_id, place])


def _taken(db: sqlite_utils.Database, names: Iterable[str], other_than: int = 0) -> list[str]:
    """Return those of the names that a router (but one) goes by."""
    query = "SELECT 1 FROM router_names WHERE name = ? AND router_id <> ?"
    return [name for name in names if db.execute(query, [name, other_than]).fetchone()]
