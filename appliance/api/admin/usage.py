"""GET /v1/admin/usage: everyone's requests, as pages or as one CSV file; only in the union."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlite_utils
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.response import Stream

from appliance.api.account.usage import MICROS, times_of, usage_of
from appliance.api.answers import listed
from appliance.api.field_errors import wrong_field
from appliance.api.fields import LARGEST
from appliance.api.paging import DEFAULT_LIMIT, LARGEST_LIMIT, optional_query_id, query_int
from appliance.gateway.gateway import Gateway
from appliance.gateway.usage import reports
from appliance.gateway.usage.record import UsageRecord
from appliance.storage.database import Database

_STATUS = re.compile(r"([1-5])(?:[0-9]{2}|xx)")

BURNED = ("kwh_min", "kwh_max", "kgco2eq_min", "kgco2eq_max", "measured")
COLUMNS = tuple(name for name in UsageRecord.__struct_fields__ if name != "footprint")
# What spreadsheets take for the beginning of a formula; Japanese and Chinese ones also the full-width signs.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@get("/admin/usage", operation_id="listUsage", tags=["Admin"], access="admin")
async def list_usage(request: Request[Any, Any, State]) -> Response[bytes] | Stream:
    """List requests, the newest first, with the sums over all that match; with ``Accept: text/csv``, all of them.

    Query: ``offset``, ``limit`` (1 to 100), ``user`` (an id), ``model``, ``endpoint``, ``status`` (503, or 5xx),
    ``start_time`` and ``end_time`` (seconds, both included; the last 30 days when absent).
    """
    offset = query_int(request, "offset", 0, least=0, most=LARGEST)
    limit = query_int(request, "limit", DEFAULT_LIMIT, least=1, most=LARGEST_LIMIT)
    start, end = times_of(request)
    which = reports.RecordFilter(
        start=start,
        end=end,
        user_id=optional_query_id(request, "user"),
        model=request.query_params.get("model"),
        endpoint=request.query_params.get("endpoint"),
        statuses=_statuses(request),
    )
    gateway: Gateway = request.app.state.gateway
    database: Database = request.app.state.database
    await gateway.usage.flush()
    if "text/csv" in request.headers.get("accept", ""):
        first = await database.read(lambda db: reports.chunk_before(db, which))
        return Stream(
            _table(database, which, first),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="usage.csv"', "Cache-Control": "no-store"},
        )

    def page(db: sqlite_utils.Database) -> tuple[list[UsageRecord], reports.Totals]:
        return reports.records(db, which, offset, limit), reports.totals(db, which)

    found, totals = await database.read(page)
    sums = msgspec.structs.asdict(totals)
    total = sums.pop("records")
    return listed(
        [_shown(record) for record in found],
        total=total,
        offset=offset,
        limit=limit,
        sums={**sums, "cost": totals.cost / MICROS},
    )


def _statuses(request: Request[Any, Any, State]) -> tuple[int, int] | None:
    text = request.query_params.get("status")
    if text is None:
        return None
    match = _STATUS.fullmatch(text)
    if match is None:
        raise wrong_field("status", "Value error, a status such as 200, or 2xx", place="query")
    if text.endswith("xx"):
        return int(match[1]) * 100, int(match[1]) * 100 + 99
    return int(text), int(text)


async def _table(
    database: Database,
    which: reports.RecordFilter,
    chunk: tuple[list[UsageRecord], tuple[int, int] | None],
) -> AsyncIterator[bytes]:
    """Write the file chunk by chunk: neither the table nor a transaction of the store is held meanwhile."""
    yield _lines([(*COLUMNS, *BURNED)])
    while True:
        records, further = chunk
        yield _lines(_cells(record) for record in records)
        if further is None:
            return
        before = further
        chunk = await database.read(lambda db: reports.chunk_before(db, which, before))  # noqa: B023 - awaited here


def _cells(record: UsageRecord) -> list[Any]:
    values = [_cell(name, getattr(record, name)) for name in COLUMNS]
    values += [getattr(record.footprint, name) for name in BURNED]
    return [_defused(value) if isinstance(value, str) else value for value in values]


def _cell(name: str, value: Any) -> Any:
    """Return a field as a reader of the file takes it: times in ISO 8601, UTC, and the cost in the currency."""
    if name == "created_at":
        return datetime.fromtimestamp(value / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
    return f"{value // MICROS}.{value % MICROS:06}" if name == "cost" else value


def _defused(text: str) -> str:
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def _shown(record: UsageRecord) -> dict[str, Any]:
    return {
        "object": "usage",
        "user": record.user_id,
        "email": record.email,
        "key": record.key_id,
        "key_name": record.key_name,
        "router": record.router_id,
        "model": record.model,
        "provider": record.provider_id,
        "provider_model": record.provider_model,
        "endpoint": record.endpoint,
        "method": record.method,
        "status": record.status,
        "usage": usage_of(record),
        "created": record.created_at // 1000,
    }
