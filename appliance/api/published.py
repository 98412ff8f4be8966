"""What OpenGateLLM's mount is strict about before anyone looks at the key: FastAPI's ways with paths and schemes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import Guard

from appliance.accounts.errors import AuthenticationError, PermissionDeniedError
from appliance.api.authentication import KEY_HEADERS, PUBLIC
from appliance.api.body import decoded, read_body
from appliance.api.dialect import Dialect
from appliance.api.form import content_type
from appliance.errors import ApplianceError

AsyncGuard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]

BODY_METHODS = ("POST", "PATCH")
MOST_OF_A_STRANGER = 64 << 10


class RedirectError(ApplianceError):
    """What is asked for is at ``location``."""

    status = 307

    def __init__(self, location: str) -> None:
        super().__init__("Temporary Redirect")
        self.location = location


def as_published(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Hold a request to the letter of its mount.

    Raises RedirectError (307), MethodNotAllowedException (405), PermissionDeniedError (403).
    """
    dialect: Dialect | None = handler.opt.get("dialect")
    if dialect is None or not dialect.detail_only:
        return
    location = slashless(connection.scope)
    if location is not None:
        raise RedirectError(location)
    if connection.scope.get("method") == "OPTIONS":
        # The framework has an answer of its own to it, on every path.
        raise MethodNotAllowedException(headers={"Allow": ", ".join(_methods(connection))})
    if handler.opt.get("access") != PUBLIC and _misspelt_bearer(connection):
        raise PermissionDeniedError("Invalid authentication scheme.")


def unreadable_first(guard: AsyncGuard) -> Guard:
    """Return a guard that, before it refuses a key, says of a JSON body that it is none: FastAPI reads that first.

    Of a stranger's body only one is read that is announced as JSON of at most MOST_OF_A_STRANGER bytes.
    Raises what ``guard`` raises, UnreadableBodyError (422), and what ``read_body`` and ``decoded`` raise.
    """

    async def reading(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        try:
            await guard(connection, handler)
        except (AuthenticationError, PermissionDeniedError):
            if isinstance(connection, Request) and _reads_stranger(connection, handler):
                body = await read_body(connection)
                if body:
                    await decoded(body, Any)
            raise

    return reading


def _reads_stranger(request: Request[Any, Any, Any], handler: BaseRouteHandler) -> bool:
    dialect: Dialect | None = handler.opt.get("dialect")
    return (
        dialect is not None
        and dialect.detail_only
        and request.method in BODY_METHODS
        and content_type(request) == "application/json"
        and (request.content_length or 0) <= MOST_OF_A_STRANGER
        and "transfer-encoding" not in request.headers
    )


def _methods(connection: ASGIConnection[Any, Any, Any, Any]) -> list[str]:
    """Return the methods that the path of a request has."""
    template = connection.scope["path_template"]
    found = {
        str(method)
        for route in connection.app.routes
        if isinstance(route, HTTPRoute) and route.path_format == template
        for method in route.methods
    }
    return sorted(found - {"OPTIONS"})


def slashless(scope: Mapping[str, Any]) -> str | None:
    """Return where a request leads whose path has a slash at its end, query included; None without one."""
    path: str = scope.get("raw_path", b"").decode("latin-1")
    if not path.endswith("/"):
        return None
    query = scope.get("query_string", b"").decode("latin-1")
    # Of several slashes at the beginning one is left: two would make it another host.
    return "/" + path.strip("/") + ("?" + query if query else "")


def has_other_scheme(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Tell whether the only credential is of another scheme than bearer (or a scheme without any)."""
    if any(connection.headers.get(header, "").strip() for header in KEY_HEADERS):
        return False
    scheme, _, rest = connection.headers.get("authorization", "").strip().partition(" ")
    return bool(rest.strip()) != (scheme.lower() == "bearer")


def _misspelt_bearer(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    scheme, _, rest = connection.headers.get("authorization", "").strip().partition(" ")
    others = any(connection.headers.get(header, "").strip() for header in KEY_HEADERS)
    return bool(rest.strip()) and scheme != "Bearer" and scheme.lower() == "bearer" and not others
