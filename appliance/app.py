"""Builds the service from the rooms; nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp

from appliance.accounts.housekeeping import keep_house
from appliance.accounts.login import Logins
from appliance.accounts.sealing import Sealer
from appliance.api.authentication import authorize, on_loop, require_access
from appliance.api.documentation import openapi_config
from appliance.api.errors import error_response, http_error_response, internal_error_response
from appliance.api.failed_start import FailedStart
from appliance.api.monitoring.backups import BackupCollector
from appliance.api.monitoring.gauges import Box, Connections
from appliance.api.monitoring.metrics import Metrics
from appliance.api.observation import observed
from appliance.api.published import as_published, unreadable_first
from appliance.api.routes import routes
from appliance.audit.keeper import AuditKeeper
from appliance.control.commands import Commands
from appliance.control.pack_trials import PackTrials
from appliance.control.releases_seen import record_release
from appliance.control.server import ControlServer
from appliance.control.state import state_of
from appliance.control.stores import Stores
from appliance.control.vitals import Vitals
from appliance.errors import ApplianceError
from appliance.gateway.catalog import Catalog
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.health import HealthWatch
from appliance.jobs.handlers import job_handlers
from appliance.jobs.runner import JobRunner
from appliance.releases.gate import WriteGate
from appliance.service.presence import Presence
from appliance.signing.trust import trust_store
from appliance.storage.spool import Spool

# With the default of 5 ms, a thread that holds the GIL delays a 1 ms engine step several times over.
SWITCH_INTERVAL_SECONDS = 0.0005


def build_app(
    stores: Stores,
    catalog: Catalog,
    connections: Connections | None = None,
    presence: Presence | None = None,
) -> ASGIApp:
    """Return the ASGI application over open stores; its lifespan starts what is left, and stops the models too.

    ``catalog`` may be loading its models already; its event loop is the one that the application will run in.
    ``connections`` are the server's, for the metrics; ``presence`` tells a service manager how it goes.
    """
    settings = stores.settings
    metrics = Metrics()
    gate = WriteGate(settings.releases_dir, settings.data_dir)
    keeper = AuditKeeper(stores.database, stores.audit)
    failed = FailedStart()

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        loop = asyncio.get_running_loop()

        gateway = Gateway(stores.database, stores.audit, catalog, settings)

        def job_ended() -> None:
            loop.call_soon_threadsafe(gateway.refresh_soon)

        async def opened() -> None:
            await gate.watch()
            await record_release(stores.database, stores.audit, settings.releases_dir)

        jobs = JobRunner(stores.database, job_handlers(stores.packs, settings), job_ended)
        trials = PackTrials(stores.packs, trust_store(settings), catalog, gateway.refresh)
        commands = Commands(stores, jobs, gateway.refresh, lambda: state_of(catalog, gate), trials.outcome)
        control = ControlServer(settings.control_path, commands)
        box = Box(
            catalog=catalog,
            gateway=gateway,
            audit=stores.audit,
            refused=keeper.refused,
            connections=connections,
        )
        metrics.watch(box, stores.database)
        metrics.registry.register(BackupCollector(settings))
        gateway.observers.append(metrics.called)
        app.state.catalog = catalog
        app.state.gateway = gateway
        app.state.spool = Spool(settings.spool_dir)
        # Each is closed again when a later one cannot start.
        async with AsyncExitStack() as started:
            started.push_async_callback(keeper.close)
            await keeper.start()
            started.push_async_callback(catalog.close)
            started.push_async_callback(gateway.close)
            await gateway.start()
            watch = HealthWatch(gateway.states, gateway.providers, gateway.upstream, app.state.sealer)
            started.push_async_callback(watch.close)
            watch.start()
            housekeeping = asyncio.create_task(keep_house(stores.database, stores.audit), name="housekeeping")
            started.callback(housekeeping.cancel)
            started.push_async_callback(asyncio.to_thread, jobs.close)
            jobs.start()
            looking = asyncio.create_task(trials.watch(), name="packs on trial")
            started.callback(looking.cancel)
            watching = asyncio.create_task(opened(), name="write gate")
            started.callback(watching.cancel)
            started.push_async_callback(control.close)
            await control.start()
            if presence is not None:
                vitals = Vitals(stores.database, catalog)
                started.push_async_callback(presence.close)
                presence.start(vitals.models, vitals.alive)
            yield

    def writes_allowed(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        gate.require_open(str(connection.scope.get("method", "")))

    app = Litestar.from_config(
        AppConfig(
            route_handlers=routes(settings),
            guards=[unreadable_first(on_loop(writes_allowed, as_published, authorize))],
            exception_handlers={
                ApplianceError: error_response,
                HTTPException: http_error_response,
                Exception: internal_error_response,
            },
            lifespan=[failed.remembering(lifespan)],
            state=State(
                {
                    "settings": settings,
                    "database": stores.database,
                    "keyring": stores.keyring,
                    "setup": stores.setup,
                    "logins": Logins(stores.database, stores.keyring, stores.audit, settings.session_seconds),
                    "audit": stores.audit,
                    "sealer": Sealer(stores.secret),
                    "metrics": metrics,
                    "refused_keys": keeper.refused,
                }
            ),
            request_max_body_size=settings.max_json_bytes,
            openapi_config=openapi_config(settings.app_title),
            # Our own logging; the framework's would log every handled error as an exception.
            logging_config=None,
        )
    )
    require_access(app.routes)
    return observed(failed.saying(app), metrics, settings.request_read_timeout)
