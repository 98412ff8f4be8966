"""From a provider to the upstream server behind it, as a request calls it."""

from __future__ import annotations

from typing import Any

import aiohttp
from litestar import Request

from appliance.accounts.errors import AccountError
from appliance.accounts.keys import Keyring
from appliance.accounts.sealing import Sealer
from appliance.api.authentication import CACHE_SCOPE_HEADER, cache_scope_of
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.client import Upstream
from appliance.gateway.upstream.failures import not_now, unavailable

# Boxes may stand behind boxes, but not in a circle: each tells the next how many the request has passed.
HOPS_HEADER = "X-Appliance-Hops"
MAX_HOPS = 8


def upstream_of(request: Request[Any, Any, Any], provider: Provider) -> Upstream:
    """Return how a provider's server is called. Raises UpstreamUnavailableError when its key cannot be opened."""
    sealer: Sealer = request.app.state.sealer
    try:
        key = None if provider.sealed_key is None else sealer.open(provider.sealed_key, provider.id)
    except AccountError as error:
        raise unavailable(f"provider {provider.id}", str(error)) from error
    return Upstream.of(provider, key)


def headers_for(request: Request[Any, Any, Any], upstream: Upstream) -> dict[str, str]:
    """Return the headers that a forwarded request has of its own.

    Raises ProviderBusyError (503) when it has passed too many boxes. That is no failure of the provider's: any
    client may claim it.
    """
    if upstream.type != "appliance":
        return {}
    # One key of that box stands for all users of this one: it is told whose prompts may share cached prefixes.
    # Under this box's own secret: the users of two boxes in front are not each other.
    keyring: Keyring = request.app.state.keyring
    scope = keyring.digest(cache_scope_of(request)).hex()[:32]
    text = request.headers.get(HOPS_HEADER, "0")
    hops = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_HOPS)) else 0
    if hops >= MAX_HOPS:
        raise not_now(upstream.name, f"the request came through {hops} boxes: they may stand in a circle")
    return {HOPS_HEADER: str(hops + 1), CACHE_SCOPE_HEADER: scope}


def client_of(request: Request[Any, Any, Any]) -> aiohttp.ClientSession:
    """Return the client for upstream servers."""
    gateway: Gateway = request.app.state.gateway
    return gateway.upstream
