"""The routers, their providers and every role's limits, read whole from the store after each change.

Requests look things up here without touching the store; an administrator's change is read in before it is
acknowledged.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec
import sqlite_utils

from appliance.gateway.errors import ForbiddenModelError, ModelNotFoundError
from appliance.gateway.routing.records import LIMIT_TYPES, Limits, Provider, Router

RoleLimits = dict[str, int | None]

_ROUTERS = """
SELECT r.id, n.name, r.type, r.user_id, o.name AS owner, r.load_balancing_strategy, r.cost_prompt_tokens,
       r.cost_completion_tokens, r.created_at, r.updated_at
FROM routers r
JOIN router_names n ON n.router_id = r.id AND n.place = 0
LEFT JOIN users u ON u.id = r.user_id
LEFT JOIN organizations o ON o.id = u.organization_id
ORDER BY r.id
"""


class RoutingTable:
    """One state of the routers, providers and limits; never changed, but replaced."""

    def __init__(
        self,
        routers: list[Router],
        limits: dict[tuple[int, int], RoleLimits],
        default_limits: dict[int, RoleLimits],
    ) -> None:
        """Take routers by id, limits by (role, router) and by role for the routers that it does not name."""
        self.routers = {router.id: router for router in routers}
        self._names = {name: router for router in routers for name in (router.name, *router.aliases)}
        self._limits = limits
        self._default_limits = default_limits

    @classmethod
    def read(cls, db: sqlite_utils.Database) -> RoutingTable:
        """Read the store's present state."""
        aliases: dict[int, list[str]] = defaultdict(list)
        for row in db.query("SELECT router_id, name FROM router_names WHERE place > 0 ORDER BY place"):
            aliases[row["router_id"]].append(row["name"])
        providers: dict[int, list[Provider]] = defaultdict(list)
        for row in db.query("SELECT * FROM providers ORDER BY id"):
            providers[row["router_id"]].append(msgspec.convert(row, Provider))
        routers = [
            msgspec.convert(
                {**row, "aliases": tuple(aliases[row["id"]]), "providers": tuple(providers[row["id"]])},
                Router,
            )
            for row in db.query(_ROUTERS)
        ]
        limits: dict[tuple[int, int], RoleLimits] = defaultdict(dict)
        for row in db.query("SELECT role_id, router_id, type, value FROM role_limits"):
            limits[row["role_id"], row["router_id"]][row["type"]] = row["value"]
        defaults: dict[int, RoleLimits] = defaultdict(dict)
        for row in db.query("SELECT role_id, type, value FROM role_default_limits"):
            defaults[row["role_id"]][row["type"]] = row["value"]
        return cls(routers, dict(limits), dict(defaults))

    def named(self, name: str) -> Router | None:
        """Return the router of that name or alias."""
        return self._names.get(name)

    def visible(self, role_id: int) -> list[Router]:
        """Return the routers with a provider that a role sees, in the order of their ids."""
        return [
            router for router in self.routers.values() if router.providers and self.shows(role_id, router)
        ]

    def shows(self, role_id: int, router: Router) -> bool:
        """Tell whether a role sees a router."""
        return self._values(role_id, router) is not None

    def allows(self, role_id: int, router: Router) -> bool:
        """Tell whether a role may use a router: each kind of limit is there, and none is 0."""
        values = self._values(role_id, router) or {}
        return all(values.get(kind, 0) != 0 for kind in LIMIT_TYPES)

    def limits(self, role_id: int, router: Router) -> Limits:
        """Return what a role may ask of a router.

        Raises ModelNotFoundError when it may not see it, ForbiddenModelError when a limit is missing or 0.
        """
        values = self._values(role_id, router)
        if values is None:
            raise ModelNotFoundError(router.name, [each.name for each in self.visible(role_id)])
        if not self.allows(role_id, router):
            raise ForbiddenModelError(router.name)
        return Limits(values["rpm"], values["rpd"], values["tpm"], values["tpd"])

    def limits_of_role(self, role_id: int) -> list[tuple[Router, str, int | None]]:
        """Return (router, limit type, value) of every limit that shows a role a router."""
        found: list[tuple[Router, str, int | None]] = []
        for router in self.routers.values():
            values = self._values(role_id, router) or {}
            found += [(router, kind, values[kind]) for kind in LIMIT_TYPES if values.get(kind, 0) != 0]
        return found

    def _values(self, role_id: int, router: Router) -> RoleLimits | None:
        """Return the limits that count for a router; None when none of them lets it be seen."""
        values = self._limits.get((role_id, router.id)) or self._default_limits.get(role_id, {})
        return values if any(value != 0 for value in values.values()) else None
