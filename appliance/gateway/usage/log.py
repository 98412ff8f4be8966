"""Usage records on their way to the store: in batches, off the path of requests.

A record, the budget it takes from and the counters of limits are written in one transaction, twice a second.
"""

from __future__ import annotations

from appliance.gateway.budget import Ledger
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.usage.record import UsageRecord
from appliance.storage.database import Database


class UsageLog:
    """Takes records on the event loop and writes them."""

    def __init__(self, database: Database, ledger: Ledger, limiter: Limiter) -> None:
        self._database = database
        self._ledger = ledger
        self._limiter = limiter

    async def start(self) -> None:
        """Load the limits' counters and begin to write."""

    async def close(self) -> None:
        """Write what is left and stop."""

    def add(self, record: UsageRecord) -> None:
        """Take a record; its cost is held in the ledger until the store has it."""

    async def flush(self) -> None:
        """Return when everything taken so far is in the store."""
