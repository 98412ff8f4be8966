"""What is counted of every call of a model: by router and provider, which only administrators name."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Histogram

from appliance.api.monitoring.http import BUCKETS
from appliance.errors import ApplianceError
from appliance.gateway.errors import InsufficientBudgetError, LimitExceededError
from appliance.gateway.routing.records import LIMIT_TYPES
from appliance.gateway.usage.record import UsageRecord

MICROS = 1_000_000
_SLASHES = re.compile("/{2,}")


class CallMetrics:
    """The counters of calls, and of what limits and budgets refused."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("router", "provider")
        self._calls = Counter(
            "appliance_calls_total",
            "Calls of models.",
            (*names, "endpoint", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "appliance_call_seconds",
            "Time from the request's arrival to the end of its answer, of calls that succeeded.",
            names,
            buckets=BUCKETS,
            registry=registry,
        )
        self._ttft = Histogram(
            "appliance_call_ttft_seconds",
            "Time from the request's arrival to the first token of a stream.",
            names,
            buckets=BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "appliance_tokens_total", "Tokens counted.", (*names, "type"), registry=registry
        )
        self._cost = Counter(
            "appliance_cost_total",
            "What calls cost, in the currency of the prices.",
            names,
            registry=registry,
        )
        self._limits = Counter(
            "appliance_limits_hit_total",
            "Requests that a limit of the caller refused.",
            ("type",),
            registry=registry,
        )
        for kind in LIMIT_TYPES:
            self._limits.labels(kind)
        self._budgets = Counter(
            "appliance_budget_refusals_total",
            "Requests that the caller's budget did not pay for.",
            registry=registry,
        )

    def ended(self, record: UsageRecord) -> None:
        """Count a call that reached a provider."""
        names = (record.model, str(record.provider_id))
        self._calls.labels(*names, endpoint_of(record), str(record.status)).inc()
        if record.status < 400:
            self._seconds.labels(*names).observe(record.latency_ms / 1000)
        if record.ttft_ms is not None:
            self._ttft.labels(*names).observe(record.ttft_ms / 1000)
        self._tokens.labels(*names, "prompt").inc(record.prompt_tokens)
        self._tokens.labels(*names, "completion").inc(record.completion_tokens)
        self._cost.labels(*names).inc(record.cost / MICROS)

    def refused(self, error: ApplianceError) -> None:
        """Count an error if it is the refusal of a limit or a budget."""
        if isinstance(error, LimitExceededError):
            self._limits.labels(error.kind).inc()
        elif isinstance(error, InsufficientBudgetError):
            self._budgets.inc()


def endpoint_of(record: UsageRecord) -> str:
    """Return the path of a call as its route is written: clients may add slashes, and each would be a series."""
    return _SLASHES.sub("/", record.endpoint).rstrip("/")
