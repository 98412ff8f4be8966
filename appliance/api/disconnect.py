"""Work that ends when its client leaves, or its request ends in any other way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from litestar import Request

from appliance.errors import ApplianceError

log = logging.getLogger(__name__)

T = TypeVar("T")

_AT_END = "appliance.at_end"


class ClientGoneError(ApplianceError):
    """The client closed the connection; nobody reads this answer (status as nginx logs it)."""

    status = 499


async def until_disconnect(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` and return its result; cancel it when the client closes the connection.

    The request body must have been read: after it, the only message a server sends is the disconnect.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("The client closed the connection.")
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def at_end(request: Request[Any, Any, Any], callback: Callable[[], None]) -> None:
    """Call ``callback`` when the request is over, however it ends.

    A stream whose client leaves before the first event never starts its generator, so no ``finally``
    in it would run.
    """
    scope: MutableMapping[str, Any] = request.scope  # type: ignore[assignment] # our own key beside ASGI's
    scope.setdefault(_AT_END, []).append(callback)


def run_at_end(scope: MutableMapping[str, Any]) -> None:
    """Run what ``at_end`` took; the outermost layer calls this once per request.

    One that fails goes to the log: those after it, and the account of the request, must not be lost with it.
    """
    for callback in scope.get(_AT_END, ()):
        try:
            callback()
        except Exception:
            log.exception("what ends with a request failed")
