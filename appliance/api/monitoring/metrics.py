"""Prometheus metrics: what is counted, and GET /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.gateway.catalog import Catalog

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one running service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter(
            "appliance_requests_total", "Requests answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "appliance_request_seconds",
            "Time from the request's head to the last byte of its answer.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "appliance_requests_in_flight", "Requests being worked on.", registry=self.registry
        )
        build = Gauge("appliance_build_info", "The running version.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    def watch(self, catalog: Catalog) -> None:
        """Read the engines' queues at every scrape."""
        self.registry.register(_EngineCollector(catalog))


class _EngineCollector(Collector):
    """Reads gauges off the engines; each engine shows the attributes that it has."""

    GAUGES = (
        ("queue_depth", "appliance_engine_queue_depth", "Requests waiting for a place in the engine."),
        ("waiting", "appliance_engine_jobs", "Transcriptions that run or wait."),
        ("queued_tokens", "appliance_engine_queued_tokens", "Tokens waiting to be encoded."),
        ("running_rows", "appliance_engine_running_rows", "Sequences that the engine is generating."),
        ("kv_cache_bytes", "appliance_engine_kv_cache_bytes", "Keys and values in memory."),
    )
    COUNTERS = (
        ("prompt_tokens", "appliance_engine_prompt_tokens", "Tokens of the prompts that were begun."),
        (
            "reused_prompt_tokens",
            "appliance_engine_reused_prompt_tokens",
            "Tokens of prompts that were found in the prefix cache.",
        ),
    )

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def collect(self) -> Iterator[Metric]:
        """Yield one family per gauge, and which models are ready."""
        models = self._catalog.models()
        up = GaugeMetricFamily("appliance_model_ready", "1 when the model is loaded.", labels=["model"])
        for model in models:
            up.add_metric([model.manifest.name], float(model.state == "ready"))
        yield up
        for kind, shown in ((GaugeMetricFamily, self.GAUGES), (CounterMetricFamily, self.COUNTERS)):
            for attribute, name, text in shown:
                family = kind(name, text, labels=["model"])
                for model in models:
                    value = getattr(model.engine, attribute, None)
                    if value is not None:
                        family.add_metric([model.manifest.name], float(value))
                yield family


@get("/metrics", operation_id="metrics", tags=["Monitoring"], access="read_metric")
async def metrics(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer the metrics in Prometheus' text form."""
    counters: Metrics = request.app.state.metrics
    return Response(generate_latest(counters.registry), media_type="text/plain; version=0.0.4")
