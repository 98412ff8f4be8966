"""The outermost layer: a request id on every answer, its time in the metrics, no caches, a bound on slow bodies."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Send

from appliance.api.disconnect import run_at_end
from appliance.api.model_call import call_of
from appliance.api.monitoring.http import METHODS, UNKNOWN, Exchange
from appliance.api.monitoring.metrics import Metrics
from appliance.errors import ApplianceError

REQUEST_ID = b"x-request-id"
# Answers are their callers': a cache on the way would know neither all the headers that keys come in, nor roles.
CACHE_CONTROL = b"cache-control"
NOT_KEPT = (CACHE_CONTROL, b"no-store")
# What a client's own id may look like to be sent back: no line breaks, no megabytes.
_ACCEPTED_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")


class SlowBodyError(ApplianceError):
    """The request body did not arrive in time."""

    status = 408
    type = "invalid_request_error"


def observed(app: ASGIApp, metrics: Metrics, body_seconds: float) -> ASGIApp:
    """Wrap the application; a body that takes longer than ``body_seconds`` is refused (408)."""

    async def observe(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        if not _ACCEPTED_ID.match(request_id):
            request_id = uuid.uuid4().hex.encode()
        status = 500
        received = sent = 0
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            sent += len(message.get("body", b""))  # type: ignore[arg-type] # bytes, in the messages that have it
            if message["type"] == "http.response.start":
                status = message["status"]
                call = call_of(scope)
                limits = {} if call is None else call.headers()
                said = list(message["headers"])
                message["headers"] = [
                    *said,
                    *(() if any(name == CACHE_CONTROL for name, _ in said) else (NOT_KEPT,)),
                    (REQUEST_ID, request_id),
                    *((name.encode(), value.encode()) for name, value in limits.items()),
                ]
            await send(message)

        arrived = False

        async def receive_in_time() -> Any:
            nonlocal arrived, received
            if arrived:  # from here on there is only the disconnect to wait for
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise SlowBodyError("The request body did not arrive in time.") from None
            arrived = not message.get("more_body", False)
            received += len(message.get("body", b""))  # type: ignore[arg-type] # bytes
            return message

        deadline = asyncio.get_running_loop().time() + body_seconds
        metrics.in_flight.inc()
        try:
            await app(scope, receive_in_time, send_with_id)
        finally:
            metrics.in_flight.dec()
            run_at_end(scope)
            call = call_of(scope)
            if call is not None:
                call.close(status)
            metrics.answered(
                Exchange(
                    method=scope["method"] if scope["method"] in METHODS else "other",
                    route=_route(scope),
                    status=status,
                    seconds=time.monotonic() - started,
                    request_bytes=received,
                    response_bytes=sent,
                )
            )

    return observe


def _route(scope: Any) -> str:
    """Name the route by its template: a path with ids in it would make a series per id."""
    return str(scope.get("path_template") or UNKNOWN)
