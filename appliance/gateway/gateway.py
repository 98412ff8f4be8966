"""What stands between a request and a model: opened with the service, asked by every handler that needs a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import msgspec

from appliance.accounts.keys import Account
from appliance.audit.log import AuditLog
from appliance.config import Settings
from appliance.gateway.budget import Ledger, StoredBudget
from appliance.gateway.call import CallContext, ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.errors import ModelNotFoundError, WrongTaskError
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.routing.local_packs import route_packs
from appliance.gateway.routing.records import UNLIMITED, Limits, ModelType, Provider, Router
from appliance.gateway.routing.states import ProviderStates
from appliance.gateway.routing.table import RoutingTable
from appliance.gateway.usage.batch import read_budget
from appliance.gateway.usage.energy import EnergyMeter, PackageCounters
from appliance.gateway.usage.log import UsageLog
from appliance.gateway.usage.record import UsageRecord
from appliance.gateway.usage.retention import Retention
from appliance.network.egress import EgressPolicy, egress_client
from appliance.storage.database import Database


class Route(msgspec.Struct, frozen=True):
    """What a handler needs a model for: how its refusals call it, and the types of models that do it."""

    ability: str
    types: tuple[ModelType, ...]


class Gateway:
    """Routers, limits, budgets and usage of a running service. Used on the event loop only."""

    def __init__(self, database: Database, audit: AuditLog, catalog: Catalog, settings: Settings) -> None:
        self.table = RoutingTable([], {}, {})
        self.states = ProviderStates(settings)
        self.limiter = Limiter()
        self.ledger = Ledger()
        self.usage = UsageLog(database, self.ledger, self.limiter)
        self.retention = Retention(database, settings.usage_retention_days)
        self.energy = EnergyMeter(PackageCounters.find())
        # Called with the record of every call, also of those that leave none in the store.
        self.observers: list[Callable[[UsageRecord], None]] = []
        # For every call to an upstream server. The requests that cause them are bounded in number.
        self.upstream = egress_client(
            EgressPolicy(settings.provider_networks, settings.trusted_authorities),
            max_connections=settings.max_connections,
        )
        self._database = database
        self._audit = audit
        self._catalog = catalog
        self._settings = settings
        self._refreshes: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._context = CallContext(
            limiter=self.limiter,
            ledger=self.ledger,
            states=self.states,
            budget=self._budget,
            record=self._record,
            energy=self.energy,
        )

    async def start(self) -> None:
        """Take up what the store has, and begin to load the models."""
        await self.usage.start()
        self.retention.start()
        self.energy.start()
        await self.refresh()

    async def close(self) -> None:
        """Write what is left."""
        if self._refreshes:
            await asyncio.wait(self._refreshes)
        await self.upstream.close()
        await self.retention.close()
        await self.usage.close()
        self.energy.close()

    async def refresh(self) -> None:
        """Take in which packs are installed now."""
        await self._catalog.refresh()
        manifests = [model.manifest for model in self._catalog.models()]
        zone = self._settings.hosting_zone
        await self._database.write(lambda db: route_packs(db, self._audit, manifests, zone))
        await self.reload()

    def refresh_soon(self) -> None:
        """Refresh in the background."""
        task = asyncio.create_task(self.refresh(), name="refresh packs")
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    async def reload(self) -> None:
        """Take in routers, providers and limits after a change, before it is acknowledged."""
        async with self._reloading:  # else what was read first might come last
            self.table = await self._database.read(RoutingTable.read)
            self.states.keep({provider.id for provider in self.providers()})

    def providers(self) -> list[Provider]:
        """Return the providers of all routers."""
        return [provider for router in self.table.routers.values() for provider in router.providers]

    def models(self, account: Account, *, exempt: bool = False, usable: bool = False) -> list[Router]:
        """Return the routers that an account sees and that have a provider, in the order of their ids.

        With ``usable`` those that it may use.
        """
        routers = list(self.table.routers.values()) if exempt else self.table.visible(account.role_id)
        if usable and not exempt:
            routers = [router for router in routers if self.table.allows(account.role_id, router)]
        return [served for router in routers if (served := self._served(router)).providers]

    def model(self, account: Account, name: str, *, exempt: bool = False, usable: bool = False) -> Router:
        """Return the router of that name or alias, with the providers that can serve.

        Raises ModelNotFoundError when the account does not see it; with ``usable`` also when it may not use it.
        """
        router = self.table.named(name)
        if router is not None:
            served = self._served(router)
            permits = self.table.allows if usable else self.table.shows
            if served.providers and (exempt or permits(account.role_id, router)):
                return served
        available = self.models(account, exempt=exempt, usable=True)
        raise ModelNotFoundError(name, [each.name for each in available])

    def default_model(self, account: Account, route: Route, *, exempt: bool = False) -> str:
        """Return the name of the first model that does this, local ones before others.

        Raises WrongTaskError when the account may use none.
        """
        usable = self.models(account, exempt=exempt, usable=True)
        able = [router for router in usable if router.type in route.types]
        able.sort(key=lambda router: (not router.providers[0].is_local, router.name))
        if not able:
            raise WrongTaskError(
                f"No model for {route.ability} is installed that you may use.", param="model"
            )
        return able[0].name

    def call(
        self,
        account: Account,
        name: str,
        route: Route,
        *,
        endpoint: str,
        method: str = "POST",
        exempt: bool = False,
        begun: Callable[[ModelCall], None] | None = None,
    ) -> ModelCall:
        """Admit a request to the model of that name.

        ``begun`` is given the call before its limits are looked at: what refuses it shows them too.

        Raises ModelNotFoundError, ForbiddenModelError, LimitExceededError and WrongTaskError, in this order.
        """
        router = self.model(account, name, exempt=exempt)
        limits: Limits = UNLIMITED if exempt else self.table.limits(account.role_id, router)
        call = ModelCall(
            self._context,
            account,
            router,
            limits,
            endpoint=endpoint,
            method=method,
            priority=min(account.priority, self._settings.routing_max_priority),
            exempt=exempt,
        )
        if begun is not None:
            begun(call)
        call.admit()
        if router.type not in route.types:
            raise WrongTaskError(
                f"The model `{router.name}` does not support {route.ability}.", param="model"
            )
        return call

    def _served(self, router: Router) -> Router:
        """Return the router without the providers whose pack is not installed."""
        installed: Collection[str] = self._catalog.names()
        providers = tuple(
            each for each in router.providers if not each.is_local or each.model_name in installed
        )
        if len(providers) == len(router.providers):
            return router
        return msgspec.structs.replace(router, providers=providers)

    def _budget(self, user_id: int) -> StoredBudget | None:
        # One indexed look-up, on the loop like the one of the key.
        return self._database.read_sync(lambda db: read_budget(db, user_id))

    def _record(self, record: UsageRecord, exempt: bool) -> None:
        # What it cost first: no observer may lose that.
        if not exempt:
            self.usage.add(record)
        for observe in self.observers:
            observe(record)
