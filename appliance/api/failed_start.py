"""An application that cannot start says why in a line, where the framework would show its traceback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.types import ASGIApp, Receive, Send

from appliance.errors import ApplianceError

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]

FAILED = "lifespan.startup.failed"


class FailedStart:
    """Remembers the error of ours that ended a start, for the message to the server."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def remembering(self, lifespan: Lifespan) -> Lifespan:
        """Return the lifespan, whose errors are remembered."""

        @asynccontextmanager
        async def remembered(app: Litestar) -> AsyncIterator[None]:
            try:
                async with lifespan(app):
                    yield
            except ApplianceError as error:
                self._reason = error.message
                raise

        return remembered

    def saying(self, app: ASGIApp) -> ASGIApp:
        """Return the application, which tells the server what was remembered. A fault of ours keeps its traceback."""

        async def said(scope: Any, receive: Receive, send: Send) -> None:
            async def send_plain(message: Any) -> None:
                if message["type"] == FAILED and self._reason is not None:
                    message = {**message, "message": self._reason}
                await send(message)

            await app(scope, receive, send_plain if scope["type"] == "lifespan" else send)

        return said
