"""What is counted of every HTTP request: by route template, never by what a client wrote."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
# The template of paths that no route has.
UNKNOWN = "unknown"
LOGIN = "/auth/login"


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its answer. ``route`` is the template of the path; times in seconds, sizes in bytes."""

    method: str
    route: str
    status: int
    seconds: float
    request_bytes: int
    response_bytes: int


class HttpMetrics:
    """The counters of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge("appliance_requests_in_flight", "Requests being worked on.", registry=registry)
        self._requests = Counter(
            "appliance_requests_total",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "appliance_request_seconds",
            "Time from the request's head to the last byte of its answer.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._failed_logins = Counter(
            "appliance_logins_failed_total", "Logins that were refused.", registry=registry
        )

    def answered(self, exchange: Exchange) -> None:
        """Count a request."""
        self._requests.labels(exchange.method, exchange.route, exchange.status).inc()
        self._seconds.labels(exchange.method, exchange.route).observe(exchange.seconds)
        if exchange.route.endswith(LOGIN) and exchange.status in (401, 429):
            self._failed_logins.inc()
