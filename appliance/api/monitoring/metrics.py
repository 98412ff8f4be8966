"""Prometheus metrics: what is counted in one running service, and GET /metrics."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector

from appliance import __version__
from appliance.api.monitoring.calls import CallMetrics
from appliance.api.monitoring.gauges import Box, LoopCollector, StoreCollector
from appliance.api.monitoring.http import Exchange, HttpMetrics
from appliance.api.monitoring.opengatellm import OpenGateLLMMetrics
from appliance.api.monitoring.rendering import rendered
from appliance.errors import ApplianceError
from appliance.gateway.usage.record import UsageRecord
from appliance.storage.database import Database


class Metrics:
    """All series: the box's own, and beside them OpenGateLLM's from the same observations."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.opengatellm_registry = CollectorRegistry()
        self._http = HttpMetrics(self.registry)
        self._calls = CallMetrics(self.registry)
        self._opengatellm = OpenGateLLMMetrics(self.opengatellm_registry)
        self._loop = LoopCollector()
        self._box: Box | None = None
        self.in_flight = self._http.in_flight
        build = Gauge("appliance_build_info", "The running version.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)
        self.registry.register(self._loop)
        for registry in (self.registry, self.opengatellm_registry):
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)

    def watch(self, box: Box, database: Database) -> None:
        """Read queues, providers, the store and the disk at every scrape."""
        self._box = box
        self.registry.register(StoreCollector(database))

    def answered(self, exchange: Exchange) -> None:
        """Count a request."""
        self._http.answered(exchange)
        self._opengatellm.answered(exchange)

    def called(self, record: UsageRecord) -> None:
        """Count a call of a model."""
        self._calls.ended(record)
        self._opengatellm.ended(record)

    def refused(self, error: ApplianceError) -> None:
        """Count an error if it is the refusal of a limit or a budget."""
        self._calls.refused(error)

    async def render(self) -> Response[bytes]:
        """Answer with the box's own series."""
        if self._box is not None:
            self._loop.families = self._box.read()
        return await rendered(self.registry)


@get("/metrics", operation_id="metrics", tags=["Monitoring"], access="read_metric")
async def metrics(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer the metrics in Prometheus' text form."""
    counters: Metrics = request.app.state.metrics
    return await counters.render()
