"""How each provider is doing, and which of a router's providers takes the next request."""

from __future__ import annotations

import random

import msgspec

from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.gateway.routing.records import Provider, Router


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request at a provider ended. Times in seconds; ``ttft`` None unless it streamed."""

    failed: bool
    latency: float
    ttft: float | None
    completion_tokens: int


class ProviderStates:
    """What is known of the providers of a running service. Used on the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def acquire(self, router: Router, tried: set[int], priority: int) -> Provider | None:
        """Choose a provider of ``router`` that was not tried yet, and count a request in flight there.

        Waits while all that could take it are beyond their quality-of-service limits, callers of higher
        ``priority`` first. Returns None when every provider was tried. Raises ProviderBusyError.
        """
        untried = [provider for provider in router.providers if provider.id not in tried]
        return random.choice(untried) if untried else None  # noqa: S311 - balancing, not a secret

    def failed(self, provider: Provider, error: ApplianceError) -> None:
        """Note that a request could not be begun there; it is no longer in flight."""

    def ended(self, provider: Provider, outcome: Outcome) -> None:
        """Note how a request there ended; it is no longer in flight."""
