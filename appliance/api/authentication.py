"""The guard before every route: a live key, in any of the header forms that the APIs use."""

from __future__ import annotations

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
    connection.scope["user"] = keyring.authenticate(presented_key(connection))


def presented_key(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """Return the key in ``Authorization`` (with or without Bearer), else in the other key headers.

    Raises AuthenticationError when there is none.
    """
    authorization = connection.headers.get("authorization", "").strip()
    scheme, _, rest = authorization.partition(" ")
    key = rest.strip() if scheme.lower() == "bearer" else authorization
    for header in KEY_HEADERS:
        key = key or connection.headers.get(header, "").strip()
    if not key:
        raise AuthenticationError("You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.")
    return key


def account_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Account:
    """Return the account that ``require_key`` found."""
    account: Account = connection.scope["user"]
    return account
