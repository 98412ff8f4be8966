"""The guard before every route: a live key, in any of the header forms that the APIs use."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from appliance.accounts.errors import AuthenticationError
from appliance.accounts.keys import Account, Keyring

KEY_HEADERS = ("x-api-key", "unstructured-api-key")


def require_key(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let public routes pass; on all others find the account of the key. Raises AuthenticationError (401)."""
    if handler.opt.get("public"):
        return
    keyring: Keyring = connection.app.state.keyring
    presented = presented_keys(connection)
    if not presented:
        raise AuthenticationError("You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.")
    for key in presented[:-1]:
        # A proxy's own Authorization must not hide the key in another header.
        with suppress(AuthenticationError):
            connection.scope["user"] = keyring.authenticate(key)
            return
    connection.scope["user"] = keyring.authenticate(presented[-1])


def presented_keys(connection: ASGIConnection[Any, Any, Any, Any]) -> list[str]:
    """Return what stands in ``Authorization`` (with or without Bearer) and in the other key headers."""
    authorization = connection.headers.get("authorization", "").strip()
    scheme, _, rest = authorization.partition(" ")
    found = [rest.strip() if scheme.lower() == "bearer" else authorization]
    found += [connection.headers.get(header, "").strip() for header in KEY_HEADERS]
    return [key for key in found if key]


def account_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Account:
    """Return the account that ``require_key`` found."""
    account: Account = connection.scope["user"]
    return account
