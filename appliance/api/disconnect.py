"""Work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from litestar import Request

from appliance.errors import ApplianceError

T = TypeVar("T")


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
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pending


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
