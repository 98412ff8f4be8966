"""The series of OpenGateLLM 0.4.1, and the two routes that its clients look for above the mount."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from appliance.api.dialect import OPENGATELLM
from appliance.api.monitoring.calls import endpoint_of
from appliance.api.monitoring.http import UNKNOWN, Exchange
from appliance.api.monitoring.rendering import rendered
from appliance.gateway.usage.record import UsageRecord

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MILLISECONDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000)
TOKENS_PER_SECOND = (5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
# Those that its instrumentation of HTTP has.
ROUGH_SECONDS = (0.1, 0.5, 1)
FINE_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5),
    *(7.5, 10, 30, 60),
)


class OpenGateLLMMetrics:
    """The same observations under the names, labels and units that its dashboards know."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("endpoint", "model")
        statuses = (*names, "status_code")
        self._calls = Counter("ogl_inference_requests_total", "Calls of models.", statuses, registry=registry)
        self._seconds = Histogram(
            "ogl_inference_requests_duration_seconds",
            "Time to the end of the answer.",
            statuses,
            buckets=SECONDS,
            registry=registry,
        )
        self._ttft = Histogram(
            "ogl_inference_ttft_milliseconds",
            "Time to the first token of a stream.",
            statuses,
            buckets=MILLISECONDS,
            registry=registry,
        )
        self._speed = Histogram(
            "ogl_inference_output_tokens_per_second",
            "Completion tokens by the time of the whole call.",
            names,
            buckets=TOKENS_PER_SECOND,
            registry=registry,
        )
        self._tokens = Counter(
            "ogl_inference_tokens_total", "Tokens counted.", (*names, "type"), registry=registry
        )
        self._requests = Counter(
            "ogl_http_requests_total",
            "Requests answered, by class of status.",
            ("handler", "method", "status"),
            registry=registry,
        )
        self._request_bytes = Summary(
            "ogl_http_request_size_bytes", "Bytes of request bodies.", ("handler",), registry=registry
        )
        self._response_bytes = Summary(
            "ogl_http_response_size_bytes", "Bytes of answers' bodies.", ("handler",), registry=registry
        )
        self._request_seconds = Histogram(
            "ogl_http_request_duration_seconds",
            "Time of requests, by handler.",
            ("handler", "method"),
            buckets=ROUGH_SECONDS,
            registry=registry,
        )
        self._fine_seconds = Histogram(
            "ogl_http_request_duration_highr_seconds",
            "Time of requests, all together and finely.",
            buckets=FINE_SECONDS,
            registry=registry,
        )

    def ended(self, record: UsageRecord) -> None:
        """Count a call that reached a provider."""
        names = (endpoint_of(record), record.model)
        status = str(record.status)
        self._calls.labels(*names, status).inc()
        self._seconds.labels(*names, status).observe(record.latency_ms / 1000)
        if record.ttft_ms is not None:
            self._ttft.labels(*names, status).observe(record.ttft_ms)
        if record.completion_tokens and record.latency_ms:
            self._speed.labels(*names).observe(record.completion_tokens * 1000 / record.latency_ms)
        self._tokens.labels(*names, "prompt").inc(record.prompt_tokens)
        self._tokens.labels(*names, "completion").inc(record.completion_tokens)

    def answered(self, exchange: Exchange) -> None:
        """Count a request; its handler has the path without the mount, and unknown paths share one."""
        handler = "none" if exchange.route == UNKNOWN else exchange.route.removeprefix(OPENGATELLM.platform)
        self._requests.labels(handler, exchange.method, f"{exchange.status // 100}xx").inc()
        self._request_bytes.labels(handler).observe(exchange.request_bytes)
        self._response_bytes.labels(handler).observe(exchange.response_bytes)
        self._request_seconds.labels(handler, exchange.method).observe(exchange.seconds)
        self._fine_seconds.observe(exchange.seconds)


@get("/health", tags=["Monitoring"], access="public")
async def opengatellm_health() -> dict[str, str]:
    """Answer that the process lives, as OpenGateLLM's clients read it."""
    return {"status": "ok"}


@get("/metrics", tags=["Monitoring"], access="read_metric")
async def opengatellm_metrics(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer OpenGateLLM's series in Prometheus' text form."""
    return await rendered(request.app.state.metrics.opengatellm_registry)
