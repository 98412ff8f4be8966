"""Old usage records become sums of quarters of an hour; the store does not grow for ever.

A chunk of records is added to the sums and deleted in one transaction: whenever the power fails, each record
is in one of the two tables and not in both.
"""

from __future__ import annotations

import asyncio
import logging

import sqlite_utils

from appliance.clock import now_ms
from appliance.gateway.usage.windows import QUARTER
from appliance.storage.database import Database
from appliance.storage.usage_sums import ADD_TO_SUMS

log = logging.getLogger(__name__)

PERIOD_SECONDS = 3600.0
# Records of one transaction: other writers wait for it, some 20 ms.
CHUNK = 2000
DAY_MS = 86_400_000

# The oldest CHUNK records, and the others of the last one's millisecond.
_BOUND = "SELECT created_at + 1 FROM usage WHERE created_at < ? ORDER BY created_at LIMIT 1 OFFSET ?"

_ADD = f"""
INSERT INTO usage_quarters
SELECT created_at / 900000, ifnull(user_id, 0), ifnull(model, ''), endpoint, count(*),
       sum(status NOT BETWEEN 200 AND 299), sum(prompt_tokens), sum(completion_tokens), sum(cost),
       sum(kwh_min), sum(kwh_max), sum(kgco2eq_min), sum(kgco2eq_max)
FROM usage
WHERE created_at < ?
GROUP BY 1, 2, 3, 4
{ADD_TO_SUMS}"""  # noqa: S608 - the text is ours


class Retention:
    """Rolls up what is older than ``days``, at start and every hour."""

    def __init__(self, database: Database, days: int) -> None:
        self._database = database
        self._days = days
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name="roll up usage")

    async def close(self) -> None:
        """Stop; a chunk that is being written is written or not, as a whole."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def roll_up(self) -> int:
        """Roll up what is due now and return how many records it was. Raises StorageError."""
        before = (now_ms() - self._days * DAY_MS) // QUARTER * QUARTER
        rolled = 0
        while chunk := await self._database.write(lambda db: roll_up_chunk(db, before)):
            rolled += chunk
        return rolled

    async def _run(self) -> None:
        while True:
            try:
                rolled = await self.roll_up()
                if rolled:
                    log.info("rolled up %d usage records older than %d days", rolled, self._days)
            except Exception:
                # Nothing is lost by it: the next hour tries again.
                log.exception("usage records were not rolled up")
            await asyncio.sleep(PERIOD_SECONDS)


def roll_up_chunk(db: sqlite_utils.Database, before: int) -> int:
    """Roll up some of the records made before a UTC millisecond, inside a write task; return how many (0: all)."""
    row = db.execute(_BOUND, [before, CHUNK - 1]).fetchone()
    bound = before if row is None else row[0]
    db.execute(_ADD, [bound])
    return int(db.execute("DELETE FROM usage WHERE created_at < ?", [bound]).rowcount)
