"""What is read at every scrape rather than counted: engines, providers, the store, the disk, connections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.audit.log import AuditLog
from appliance.audit.refusals import RefusedKeys
from appliance.gateway.catalog import Catalog
from appliance.gateway.gateway import Gateway
from appliance.storage.database import Database


class Connections(Protocol):
    """The connections of the server."""

    @property
    def running(self) -> int:
        """How many run a request."""
        ...

    @property
    def idle(self) -> int:
        """How many do not."""
        ...


class Box:
    """What the gauges are read off, on the event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        gateway: Gateway,
        audit: AuditLog,
        refused: RefusedKeys,
        connections: Connections | None,
    ) -> None:
        self._catalog = catalog
        self._gateway = gateway
        self._audit = audit
        self._refused = refused
        self._connections = connections

    def read(self) -> list[Metric]:
        """Return every family."""
        return [
            *engine_families(self._catalog),
            *provider_families(self._gateway, self._catalog),
            *self._own_families(),
        ]

    def _own_families(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "appliance_usage_records_pending",
            "Usage records that are not in the store yet.",
            self._gateway.usage.pending,
        )
        known = self._audit.known
        yield GaugeMetricFamily(
            "appliance_audit_lines",
            "The number of the audit log's last line.",
            0 if known is None else known.line,
        )
        yield CounterMetricFamily(
            "appliance_refused_keys", "Requests whose key was refused.", self._refused.total
        )
        if self._connections is not None:
            family = GaugeMetricFamily("appliance_connections", "Open connections.", labels=["state"])
            family.add_metric(["running"], self._connections.running)
            family.add_metric(["idle"], self._connections.idle)
            yield family


class LoopCollector(Collector):
    """Hands out what was read on the event loop just before: rendering runs in a thread."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> Iterator[Metric]:
        """Yield what was read last."""
        yield from self.families


class StoreCollector(Collector):
    """The store and the disk under it. Reads files, so it runs in the thread that renders."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each."""
        path = self._database.path
        disk = shutil.disk_usage(path.parent)
        for name, text, value in (
            ("appliance_store_bytes", "Size of the store's file.", size(path)),
            (
                "appliance_store_wal_bytes",
                "Size of what is written and not yet in that file.",
                size(path.with_name(path.name + "-wal")),
            ),
            (
                "appliance_store_pending_writes",
                "Writes that wait for the store's writer.",
                self._database.pending_writes,
            ),
            ("appliance_disk_free_bytes", "Free on the disk of the data directory.", disk.free),
            ("appliance_disk_total_bytes", "Size of the disk of the data directory.", disk.total),
        ):
            yield GaugeMetricFamily(name, text, value)


ENGINE_GAUGES = (
    ("queue_depth", "appliance_engine_queue_depth", "Requests waiting for a place in the engine."),
    ("waiting", "appliance_engine_jobs", "Transcriptions that run or wait."),
    ("queued_tokens", "appliance_engine_queued_tokens", "Tokens waiting to be encoded."),
    ("running_rows", "appliance_engine_running_rows", "Sequences that the engine is generating."),
    ("kv_cache_bytes", "appliance_engine_kv_cache_bytes", "Keys and values in memory."),
)
ENGINE_COUNTERS = (
    ("prompt_tokens", "appliance_engine_prompt_tokens", "Tokens of the prompts that were begun."),
    (
        "reused_prompt_tokens",
        "appliance_engine_reused_prompt_tokens",
        "Tokens of prompts that were found in the prefix cache.",
    ),
)


def engine_families(catalog: Catalog) -> Iterator[Metric]:
    """Yield which models are ready, and a family for each attribute; an engine shows those that it has."""
    models = catalog.models()
    up = GaugeMetricFamily("appliance_model_ready", "1 when the model is loaded.", labels=["model"])
    for model in models:
        up.add_metric([model.manifest.name], float(model.state == "ready"))
    yield up
    for kind, shown in ((GaugeMetricFamily, ENGINE_GAUGES), (CounterMetricFamily, ENGINE_COUNTERS)):
        for attribute, name, text in shown:
            family = kind(name, text, labels=["model"])
            for model in models:
                value = getattr(model.engine, attribute, None)
                if value is not None:
                    family.add_metric([model.manifest.name], float(value))
            yield family


def provider_families(gateway: Gateway, catalog: Catalog) -> Iterator[Metric]:
    """Yield what each provider is and does. Their numbers tell them apart; names may be the same."""
    names = ["router", "provider"]
    info = GaugeMetricFamily(
        "appliance_provider_info", "The providers of the routers.", labels=[*names, "type", "model"]
    )
    healthy = GaugeMetricFamily(
        "appliance_provider_healthy",
        "1 while requests are sent there: its pack is loaded, or its server answers.",
        labels=names,
    )
    in_flight = GaugeMetricFamily(
        "appliance_provider_in_flight", "Requests that the provider is working on.", labels=names
    )
    waiting = GaugeMetricFamily(
        "appliance_router_waiting", "Requests that wait for a provider.", labels=["router"]
    )
    ready = {model.manifest.name for model in catalog.models() if model.state == "ready"}
    states, queues = gateway.states.snapshot(), gateway.states.waiting()
    for router in gateway.table.routers.values():
        waiting.add_metric([router.name], queues.get(router.id, 0))
        for provider in router.providers:
            labels = [router.name, str(provider.id)]
            state = states.get(provider.id)  # None: nothing was asked of it yet
            up = provider.model_name in ready if provider.is_local else state is None or state.healthy
            info.add_metric([*labels, provider.type, provider.model_name], 1)
            healthy.add_metric(labels, float(up))
            in_flight.add_metric(labels, 0 if state is None else state.in_flight)
    yield from (info, healthy, in_flight, waiting)


def size(path: Path) -> int:
    """Return the size of a file, 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
