"""Requests and prompt tokens per minute and per day, counted for each user and router in sliding windows."""

from __future__ import annotations

import msgspec

from appliance.gateway.routing.records import Limits


class LimitHit(msgspec.Struct, frozen=True):
    """What a user asked of a router in one minute (since the epoch), as the store keeps it."""

    user_id: int
    router_id: int
    minute: int
    requests: int
    tokens: int


class Limiter:
    """The counters of a running service. Used on the event loop only."""

    def load(self, hits: list[LimitHit]) -> None:
        """Take up what was counted before the last start."""

    def admit_request(self, user_id: int, router_id: int, limits: Limits) -> None:
        """Count a request. Raises LimitExceededError, and counts nothing, when a limit is used up."""

    def admit_tokens(self, user_id: int, router_id: int, limits: Limits, tokens: int) -> None:
        """Count a prompt's tokens. Raises LimitExceededError, and counts nothing, when they are too many."""

    def headers(self, user_id: int, router_id: int, limits: Limits) -> dict[str, str]:
        """Return OpenAI's x-ratelimit headers for the windows nearest exhaustion."""
        return {}

    def changed(self) -> list[LimitHit]:
        """Return the sums of the minutes that changed since the last call, for the store."""
        return []
