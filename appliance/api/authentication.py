"""The guard before every route: deny by default, else a live key in any of the header forms that the APIs use."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.routes import BaseRoute, HTTPRoute

from appliance.accounts.errors import AuthenticationError, PermissionDeniedError
from appliance.accounts.keys import Account, Keyring
from appliance.accounts.permissions import PERMISSIONS
from appliance.api.client_address import source_of
from appliance.audit.log import Actor
from appliance.audit.refusals import RefusedKeys

KEY_HEADERS = ("x-api-key", "unstructured-api-key")
Connection = ASGIConnection[Any, Any, Any, Any]

CACHE_SCOPE_HEADER = "x-appliance-cache-scope"
_CACHE_SCOPE = re.compile(r"[0-9a-f]{32}")

# What a route's ``access`` may be: everything else, and none at all, lets nobody in.
PUBLIC = "public"
KEY = "key"


def on_loop(
    *guards: Callable[[Connection, BaseRouteHandler], None],
) -> Callable[[Connection, BaseRouteHandler], Awaitable[None]]:
    """Return one guard that applies these in their order, on the event loop.

    The framework would run each in a thread of its own pool: slower than what they do, and what they count is
    the loop's.
    """

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        for each in guards:
            each(connection, handler)

    return guard


def authorize(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request in as its route's ``access`` says: to everyone, with a live key, or with a permission.

    Raises AuthenticationError (401) without a live key of a live user, PermissionDeniedError (403) when the
    user's role lacks the permission that the route asks for.
    """
    access = handler.opt.get("access")
    if access == PUBLIC:
        return
    try:
        account = _live_account(connection, handler)
    except AuthenticationError:
        if presented_keys(connection):
            refused: RefusedKeys = connection.app.state.refused_keys
            refused.count(source_of(connection))
        raise
    if access != KEY and access not in account.permissions:
        raise PermissionDeniedError(str(handler.opt.get("denied", "Insufficient rights.")))
    connection.scope["user"] = account


def _live_account(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> Account:
    account = authenticate(connection)
    if account.expired and not handler.opt.get("expired_users"):
        raise AuthenticationError("Invalid API key.")
    return account


def require_access(routes: Iterable[BaseRoute]) -> None:
    """Refuse an application with a route that does not say who may call it. Raises RuntimeError."""
    for route in routes:
        if not isinstance(route, HTTPRoute):
            raise RuntimeError(f"nothing guards {route.path}, which is not HTTP")  # noqa: TRY004
        for method, (handler, _) in route.route_handler_map.items():
            # The framework's own answer to OPTIONS says nothing, and so lets nobody in.
            if method != "OPTIONS" and handler.opt.get("access") not in (PUBLIC, KEY, *PERMISSIONS):
                raise RuntimeError(f"{method} {route.path} does not say who may call it (access)")


def authenticate(connection: ASGIConnection[Any, Any, Any, Any]) -> Account:
    """Return the account of the request's key. Raises AuthenticationError."""
    keyring: Keyring = connection.app.state.keyring
    presented = presented_keys(connection)
    if not presented:
        raise AuthenticationError("You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.")
    for key in presented[:-1]:
        # A proxy's own Authorization must not hide the key in another header.
        with suppress(AuthenticationError):
            return keyring.authenticate(key)
    return keyring.authenticate(presented[-1])


def presented_keys(connection: ASGIConnection[Any, Any, Any, Any]) -> list[str]:
    """Return what stands in ``Authorization`` (with or without Bearer) and in the other key headers."""
    authorization = connection.headers.get("authorization", "").strip()
    scheme, _, rest = authorization.partition(" ")
    found = [rest.strip() if scheme.lower() == "bearer" else authorization]
    found += [connection.headers.get(header, "").strip() for header in KEY_HEADERS]
    return [key for key in found if key]


def account_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Account:
    """Return the account that ``authorize`` found."""
    account: Account = connection.scope["user"]
    return account


def cache_scope_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Return whose prompts may share cached prefixes with this request's.

    A box in front tells its users apart by a header. Whoever sends one divides its own scope, never enters another's.
    """
    scope = account_of(connection).cache_scope
    part = connection.headers.get(CACHE_SCOPE_HEADER, "")
    return f"{scope}:{part}" if _CACHE_SCOPE.fullmatch(part) else scope


def actor_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Actor:
    """Return who the audit log names for what this request changes."""
    account = account_of(connection)
    return Actor(account.user_id, account.email, source_of(connection))
