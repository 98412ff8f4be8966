"""POST /v1/usage/completions: the tokens of an account's chats and completions, by windows of time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import sqlite_utils
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.authentication import account_of
from appliance.api.body import read_json
from appliance.api.field_errors import UnprocessableError, wrong_field
from appliance.api.validation import shown_input
from appliance.clock import now_ms
from appliance.errors import InvalidRequestError
from appliance.gateway.gateway import Gateway
from appliance.gateway.usage.reports import ReportRequest, ReportRow, report
from appliance.gateway.usage.windows import EPOCH, MILLISECOND, Windows, WindowSize, zone_of
from appliance.storage.database import Database

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}):([0-9]{2})(?:\.([0-9]{1,30}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


class ModelFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Only these models."""

    model: str | list[str] | None = None


class UsageReportRequest(msgspec.Struct):
    """The body. Times are RFC 3339, ``end_time`` is now when absent; ``window_timezone`` is an IANA name."""

    start_time: str
    end_time: str | None = None
    window_size: WindowSize | None = None
    window_timezone: str | None = None
    group_by: list[Literal["model"]] | None = None
    filter_group_by: ModelFilter | None = None


@post(
    "/usage/completions",
    operation_id="createUsageReport",
    tags=["Usage"],
    access="key",
    status_code=200,
    unprocessable="all",
)
async def usage_report(request: Request[Any, Any, State]) -> Response[bytes]:
    """Report the account's tokens."""
    body = await read_json(request, UsageReportRequest)
    gateway: Gateway = request.app.state.gateway
    database: Database = request.app.state.database
    start = _moment("start_time", body.start_time)
    end = None if body.end_time is None else _moment("end_time", body.end_time)
    zone = zone_of(body.window_timezone or "UTC") if body.window_timezone != "" else None
    if zone is None:
        raise wrong_field(
            "window_timezone", "Value error, unknown time zone", input=shown_input(body.window_timezone)
        )
    await gateway.usage.flush()
    if end is None:
        end = now_ms() + 1  # so that what has just ended is counted
    if end <= start:
        raise InvalidRequestError("`end_time` must be after `start_time`.", param="end_time")
    windows = Windows(body.window_size or "DAY", zone)
    asked = ReportRequest(
        user_id=account_of(request).user_id,
        start=start,
        end=end,
        size=body.window_size or "DAY",
        zone=zone,
        by_model=bool(body.group_by),
        models=_models(body.filter_group_by, gateway),
    )
    beside = {
        "start_time": body.start_time,
        "end_time": windows.text(end) if body.end_time is None else body.end_time,
        "window_size": asked.size,
    }

    def answer(db: sqlite_utils.Database) -> bytes:
        rows = report(db, asked)
        return msgspec.json.encode({"data": [_shown(row, asked.user_id, windows) for row in rows], **beside})

    # In the reader's thread to the last byte: a long report takes a moment.
    return Response(await database.read(answer), media_type="application/json")


def _models(chosen: ModelFilter | None, gateway: Gateway) -> frozenset[str] | None:
    """Return the names of the chosen models, aliases resolved; None when all are meant."""
    if chosen is None or not chosen.model:
        return None
    names = [chosen.model] if isinstance(chosen.model, str) else chosen.model
    routers = (gateway.table.named(name) for name in names)
    return frozenset(names) | {router.name for router in routers if router is not None}


def _moment(field: str, text: str) -> int:
    """Return the first UTC millisecond not before an RFC 3339 time: of whole ones, half-open ranges stay exact."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise _wrong_time(field, text)
    day, minute, second, fraction, sign, hours, minutes = match.groups()
    leap = second == "60"
    try:
        local = datetime.fromisoformat(f"{day}T{minute}:{'59' if leap else second}").replace(tzinfo=UTC)
    except ValueError:
        raise _wrong_time(field, text) from None
    if int(hours or 0) > 23 or int(minutes or 0) > 59:
        raise _wrong_time(field, text)
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    # A leap second is the next minute's first.
    moment = (local - EPOCH) // MILLISECOND + (1000 if leap else 0)
    moment -= (-1 if sign == "-" else 1) * (offset // MILLISECOND)
    digits = "" if leap else fraction or ""
    whole, rest = digits[:3].ljust(3, "0"), digits[3:].strip("0")
    return moment + int(whole) + bool(rest)


def _wrong_time(field: str, text: str) -> UnprocessableError:
    message = "Value error, not a time of RFC 3339 with an offset, such as 2026-03-01T00:00:00Z"
    return wrong_field(field, message, input=shown_input(text))


def _shown(row: ReportRow, user_id: int, windows: Windows) -> dict[str, Any]:
    return {
        "groupBy": {} if row.model is None else {"model": row.model},
        "user_id": str(user_id),
        "input_token": row.prompt_tokens,
        "output_token": row.completion_tokens,
        "windowStart": windows.text(row.start),
        "windowEnd": windows.text(row.end),
    }
