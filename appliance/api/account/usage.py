"""GET /v1/me/usage: one's own requests, the newest first."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State

from appliance.api.answers import listed
from appliance.api.authentication import account_of
from appliance.api.errors import dialect_of
from appliance.api.field_errors import wrong_field
from appliance.api.fields import LARGEST
from appliance.api.paging import DEFAULT_LIMIT, LARGEST_LIMIT, gathered, query_int, query_text
from appliance.api.validation import listed as alternatives
from appliance.api.validation import shown_input
from appliance.clock import now_ms
from appliance.gateway.gateway import Gateway
from appliance.gateway.usage import reports
from appliance.gateway.usage.record import UsageRecord
from appliance.storage.database import Database

ENDPOINTS = (
    "/v1/audio/transcriptions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/ocr",
    "/v1/rerank",
    "/v1/search",
)
DEFAULT_SECONDS = 30 * 86_400
MICROS = 1_000_000
# OpenGateLLM's master key is a user of its own, whose requests leave no records.
MASTER = 0


@get("/me/usage", operation_id="getUsage", tags=["Me"], access="key")
async def get_usage(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the caller's successful requests."""
    offset, limit, (start, end), endpoint = gathered(
        lambda: query_int(request, "offset", 0, least=0, most=LARGEST),
        lambda: query_int(request, "limit", DEFAULT_LIMIT, least=1, most=LARGEST_LIMIT),
        lambda: times_of(request),
        lambda: _endpoint(request),
    )
    account = account_of(request)
    which = reports.RecordFilter(
        start=start,
        end=end,
        user_id=MASTER if dialect_of(request).exempts(account) else account.user_id,
        endpoint=endpoint,
        statuses=(200, 299),
    )
    gateway: Gateway = request.app.state.gateway
    database: Database = request.app.state.database
    # What was just answered is shown at once.
    await gateway.usage.flush()
    found = await database.read(lambda db: reports.records(db, which, offset, limit))
    return listed([_shown(record) for record in found])


def times_of(request: Request[Any, Any, State]) -> tuple[int, int]:
    """Return ``start_time`` and ``end_time`` (seconds) as the milliseconds of whole seconds, both inclusive.

    The last 30 days when absent. Raises UnprocessableError (422).
    """
    now = now_ms() // 1000
    start, end = gathered(
        lambda: query_int(request, "start_time", now - DEFAULT_SECONDS, least=-LARGEST, most=LARGEST),
        lambda: query_int(request, "end_time", now, least=-LARGEST, most=LARGEST),
    )
    return _bounded(start * 1000), _bounded(end * 1000 + 999)


def usage_of(record: UsageRecord) -> dict[str, Any]:
    """Return what a request used, as lists of usage show it."""
    burned = record.footprint
    carbon: dict[str, Any] = {
        "kWh": {"min": burned.kwh_min, "max": burned.kwh_max},
        "kgCO2eq": {"min": burned.kgco2eq_min, "max": burned.kgco2eq_max},
    }
    if burned.measured:
        carbon["measured"] = True
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "cost": record.cost / MICROS,
        "carbon": carbon,
        "metrics": {"latency": record.latency_ms, "ttft": record.ttft_ms},
    }


def _bounded(milliseconds: int) -> int:
    return max(-LARGEST, min(milliseconds, LARGEST))


def _endpoint(request: Request[Any, Any, State]) -> str | None:
    endpoint = query_text(request, "endpoint")
    if endpoint is None or endpoint in ENDPOINTS:
        return endpoint
    words = alternatives(ENDPOINTS)
    raise wrong_field(
        "endpoint",
        f"Input should be {words}",
        "enum",
        place="query",
        input=shown_input(endpoint),
        ctx={"expected": words},
    )


def _shown(record: UsageRecord) -> dict[str, Any]:
    return {
        "object": "me.usage",
        "model": record.model,
        "key": record.key_name,
        "endpoint": record.endpoint,
        "method": record.method,
        "status": record.status,
        "usage": usage_of(record),
        "created": record.created_at // 1000,
    }
