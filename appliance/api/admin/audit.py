"""/v1/admin/audit: the audit log, read and verified; only in the union."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State

from appliance.api.answers import json_answer, listed
from appliance.api.field_errors import wrong_field
from appliance.api.fields import LARGEST, LATEST_SECOND
from appliance.api.paging import DEFAULT_LIMIT, LARGEST_LIMIT, optional_query_int, query_int
from appliance.audit.chain import Head, parse_head
from appliance.audit.errors import AuditError
from appliance.audit.lines import Filter, Line, list_lines
from appliance.audit.log import LONGEST_NAME, AuditLog, plain
from appliance.storage.database import Database


@get("/admin/audit", operation_id="listAuditLines", tags=["Admin"], access="admin")
async def list_audit_lines(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the lines of the audit log, newest first.

    Query: ``offset``, ``limit`` (1 to 100), ``before`` (a line's id), ``actor`` (an e-mail), ``action``
    ("user.create", or "user" for all of them), ``start_time`` and ``end_time`` (seconds, both included).
    """
    database: Database = request.app.state.database
    end = _milliseconds(request, "end_time")
    limit = query_int(request, "limit", DEFAULT_LIMIT, least=1, most=LARGEST_LIMIT)
    wanted = Filter(
        actor=_text(request, "actor"),
        action=_text(request, "action"),
        since=_milliseconds(request, "start_time"),
        until=None if end is None else end + 999,
        before=optional_query_int(request, "before"),
        offset=query_int(request, "offset", 0, least=0, most=LARGEST),
        limit=limit + 1,
    )
    lines = await database.read(lambda db: list_lines(db, wanted))
    return listed([_shown(line) for line in lines[:limit]], has_more=len(lines) > limit)


@get("/admin/audit/verify", operation_id="verifyAuditLog", tags=["Admin"], access="admin")
async def verify_audit_log(request: Request[Any, Any, State]) -> Response[bytes]:
    """Check the whole log, and against a recorded head (``head`` = LINE:MAC) when one is given.

    One check runs at a time (503 meanwhile).
    """
    audit: AuditLog = request.app.state.audit
    found = await audit.verify(request.app.state.database, _head(request))
    return json_answer({"object": "audit.verification", **found.shown()})


def _head(request: Request[Any, Any, State]) -> Head | None:
    text = _text(request, "head")
    try:
        return None if text is None else parse_head(text)
    except AuditError as error:
        raise wrong_field("head", error.message, place="query") from None


def _text(request: Request[Any, Any, State], name: str) -> str | None:
    # As the log writes them; nothing else could be found.
    return plain(request.query_params.get(name) or "", LONGEST_NAME) or None


def _milliseconds(request: Request[Any, Any, State], name: str) -> int | None:
    seconds = optional_query_int(request, name)
    return None if seconds is None else min(seconds, LATEST_SECOND) * 1000


def _shown(line: Line) -> dict[str, Any]:
    return {
        "object": "audit.line",
        "id": line.id,
        "created": line.created_at // 1000,
        "user": line.user_id,
        "actor": line.actor,
        "source": line.source,
        "action": line.action,
        "target": line.target,
        "details": line.details,
        "mac": line.mac,
    }
