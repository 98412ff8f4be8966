"""Providers as administrators add, change and remove them."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlite_utils

from appliance.accounts.sealing import Sealer
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.gateway.routing.errors import RoutingError
from appliance.gateway.routing.pairing import MOVES
from appliance.gateway.routing.records import ModelType, ProviderTraits, QosMetric
from appliance.storage.database import Database


class ProviderSpec(ProviderTraits, frozen=True, kw_only=True):
    """A provider to be made; ``key`` is clear text."""

    key: str | None


class ProviderChange(msgspec.Struct, frozen=True, kw_only=True):
    """What of a provider is to change; None keeps."""

    router_id: int | None = None
    timeout: int | None = None
    hosting_zone: str | None = None
    total_params: float | None = None
    active_params: float | None = None
    qos_metric: QosMetric | None = None
    qos_limit: float | None = None


# The columns of a new provider, in the order of the fields that they have the names of.
_COLUMNS = ProviderTraits.__struct_fields__


class Providers:
    """The providers in the store; every change is in the audit log, without keys.

    The gateway must ``reload`` after a change, before it is acknowledged.
    """

    def __init__(self, database: Database, audit: AuditLog, sealer: Sealer) -> None:
        self._database = database
        self._audit = audit
        self._sealer = sealer

    async def create(self, actor: Actor, spec: ProviderSpec) -> int:
        """Add a provider, whose model was measured, and return its id.

        Raises RoutingError: 404 without its router, 403 when the model is of other sizes than that of the
        router's first provider, 409 when the router has it already.
        """

        def insert(db: sqlite_utils.Database) -> int:
            router = spec.router_id
            if _router_type(db, router) is None:
                raise RoutingError(f"Model router {router} not found.")
            _check_sizes(db, spec)
            if _has(db, router, spec.url, spec.model_name):
                raise RoutingError(
                    f"Model provider {spec.model_name} for url {spec.url} already exists for router {router}.",
                    status=409,
                )
            cursor = db.execute(
                f"INSERT INTO providers ({', '.join(_COLUMNS)}, created_at) "  # noqa: S608 - constants
                f"VALUES ({', '.join('?' * len(_COLUMNS))}, ?)",
                [*(getattr(spec, name) for name in _COLUMNS), now_ms()],
            )
            provider_id = cursor.lastrowid or 0
            if spec.key is not None:
                sealed = self._sealer.seal(spec.key, provider_id)
                db.execute("UPDATE providers SET sealed_key = ? WHERE id = ?", [sealed, provider_id])
            details: dict[str, Any] = {name: getattr(spec, name) for name in _COLUMNS}
            self._audit.append(
                db, actor, "provider.create", str(provider_id), {**details, "has_key": spec.key is not None}
            )
            return provider_id

        return await self._database.write(insert)

    async def update(self, actor: Actor, provider_id: int, change: ProviderChange) -> None:
        """Change a provider, or move it to another router.

        Raises RoutingError: 404; 400 when the new router is of a type that it cannot do, 403 when its model is
        of other sizes than that of the router's first provider, 409 when the router has it already.
        """

        def apply(db: sqlite_utils.Database) -> None:
            row = next(iter(db.query("SELECT * FROM providers WHERE id = ?", [provider_id])), None)
            if row is None:
                raise RoutingError("Model provider not found.")
            if change.router_id is not None:
                _check_move(db, row, change.router_id)
            details: dict[str, Any] = {
                name: value
                for name in ProviderChange.__struct_fields__
                if (value := getattr(change, name)) is not None
            }
            if not details:
                return
            columns = ", ".join(f"{name} = ?" for name in details)
            db.execute(
                f"UPDATE providers SET {columns}, updated_at = ? WHERE id = ?",  # noqa: S608 - names of fields
                [*details.values(), now_ms(), provider_id],
            )
            self._audit.append(db, actor, "provider.update", str(provider_id), details)

        await self._database.write(apply)

    async def delete(self, actor: Actor, provider_id: int) -> None:
        """Remove a provider; requests that run there go on. Raises RoutingError (404)."""

        def remove(db: sqlite_utils.Database) -> None:
            row = next(iter(db.query("SELECT * FROM providers WHERE id = ?", [provider_id])), None)
            if row is None:
                raise RoutingError(f"Model provider {provider_id} not found.")
            db.execute("DELETE FROM providers WHERE id = ?", [provider_id])
            details = {name: row[name] for name in ("router_id", "type", "url", "model_name")}
            self._audit.append(db, actor, "provider.delete", str(provider_id), details)

        await self._database.write(remove)


def _router_type(db: sqlite_utils.Database, router_id: int) -> ModelType | None:
    row = db.execute("SELECT type FROM routers WHERE id = ?", [router_id]).fetchone()
    router_type: ModelType | None = None if row is None else row[0]
    return router_type


def _has(db: sqlite_utils.Database, router_id: int, url: str | None, model_name: str) -> bool:
    row = db.execute(
        "SELECT 1 FROM providers WHERE router_id = ? AND ifnull(url, '') = ifnull(?, '') AND model_name = ?",
        [router_id, url, model_name],
    ).fetchone()
    return row is not None


def _first(db: sqlite_utils.Database, router_id: int) -> dict[str, Any] | None:
    query = "SELECT * FROM providers WHERE router_id = ? ORDER BY id LIMIT 1"
    return next(iter(db.query(query, [router_id])), None)


def _differ(expected: int | None, actual: int | None) -> bool:
    """Tell whether two sizes are known and not the same."""
    return expected is not None and actual is not None and expected != actual


def _check_sizes(db: sqlite_utils.Database, spec: ProviderSpec) -> None:
    first = _first(db, spec.router_id)
    if first is None:
        return
    name = db.execute(
        "SELECT name FROM router_names WHERE router_id = ? AND place = 0", [spec.router_id]
    ).fetchone()[0]
    for what, column in (("vector size", "vector_size"), ("max context length", "max_context_length")):
        expected, actual = first[column], getattr(spec, column)
        if _differ(expected, actual):
            raise RoutingError(
                f"Inconsistent {what} for {name}. Expected: {expected}. Actual: {actual}", status=403
            )


def _check_move(db: sqlite_utils.Database, row: dict[str, Any], router_id: int) -> None:
    router_type = _router_type(db, router_id)
    if router_type is None:
        raise RoutingError("Model router not found.")
    if router_id == row["router_id"]:
        return
    # A pack does one task, which its present router has the type of.
    local_elsewhere = row["type"] == "local" and router_type != _router_type(db, row["router_id"])
    if row["type"] not in MOVES[router_type] or local_elsewhere:
        raise RoutingError("New router type is not compatible with the provider type.", status=400)
    first = _first(db, router_id)
    if first is not None and _differ(first["vector_size"], row["vector_size"]):
        raise RoutingError("Inconsistent model vector size.", status=403)
    if first is not None and _differ(first["max_context_length"], row["max_context_length"]):
        raise RoutingError("Inconsistent model max context length.", status=403)
    if _has(db, router_id, row["url"], row["model_name"]):
        raise RoutingError("provider already exists for the new router.", status=409)
