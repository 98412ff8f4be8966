"""Usage records on their way to the store: in batches, off the path of requests.

A record, the budget it takes from and the counters of limits are written in one transaction, twice a second.
While the store refuses (a full disk), records wait in memory; when they become too many, the oldest are given
up, but never what they cost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque

from appliance.gateway.budget import Ledger
from appliance.gateway.limits.limiter import Limiter, LimitHit
from appliance.gateway.usage.batch import KEPT_MINUTES, Batch, last_batch, load_hits
from appliance.gateway.usage.record import UsageRecord
from appliance.storage.database import Database
from appliance.storage.errors import StorageError

log = logging.getLogger(__name__)

# The longest that a record waits before it is being written. A second is promised: the rest is for the disk.
WRITE_SECONDS = 0.5
# Between attempts while the store refuses.
LONGEST_PAUSE_SECONDS = 30.0
COMPLAINT_SECONDS = 60.0
# Records that wait at most; at some 500 bytes each.
MOST_PENDING = 100_000
# Records of one transaction: other writers wait for it, some 20 ms.
BATCH = 4000


class UsageLog:
    """Takes records on the event loop and writes them, one batch after the other."""

    def __init__(self, database: Database, ledger: Ledger, limiter: Limiter) -> None:
        self._database = database
        self._ledger = ledger
        self._limiter = limiter
        self._pending: deque[UsageRecord] = deque()
        # What is still to be taken from budgets for records that were given up.
        self._owed: Counter[int] = Counter()
        self._hits: dict[tuple[int, int, int], LimitHit] = {}
        self._batch_size = BATCH
        # How many records were taken, and how many of them are in the store or given up.
        self._taken = 0
        self._settled = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        # When the last writing began (the loop's clock): whatever waits came after it.
        self._began = 0.0
        self._lost = 0
        self._complained_at = -math.inf

    @property
    def pending(self) -> int:
        """How many records are not in the store yet."""
        return self._taken - self._settled

    async def start(self) -> None:
        """Load the limits' counters and begin to write. Raises StorageError."""
        minute = self._limiter.minute
        hits, batch = await self._database.write(lambda db: (load_hits(db, minute), last_batch(db)))
        self._limiter.load(hits)
        self._ledger.resume(batch)
        self._task = asyncio.create_task(self._run(), name="write usage")

    async def close(self) -> None:
        """Write what is left and stop; what the store refuses now is lost, which the log says."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    def add(self, record: UsageRecord) -> None:
        """Take a record; its cost is held in the ledger until the store has it."""
        self._ledger.spend(record.user_id, record.cost)
        self._pending.append(record)
        self._taken += 1
        self._shed()

    async def flush(self) -> None:
        """Return when everything taken so far is in the store. Raises StorageError when it cannot be written."""
        if self._task is None or self._task.done():
            raise StorageError("usage records are not written: the service is not running")
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._taken, written))
        self._wake.set()
        await written

    async def _run(self) -> None:
        while not self._closing:
            await self._pause()
            self._wake.clear()
            self._began = asyncio.get_running_loop().time()
            await self._write_all()
        # Also what was added while the last batch was written.
        await self._write_all()
        self._end_flushes(StorageError("usage records are not written any more: the service stops"))
        if self.pending or self._owed:
            log.error("%d usage records, and what they cost, are lost: the store refused them", self.pending)

    async def _pause(self) -> None:
        """Wait until the oldest record may wait no longer, or somebody asks for it."""
        ends = self._began + WRITE_SECONDS
        if self._failures:
            # From now on: a store that refuses slowly is to have its rest.
            seconds = min(WRITE_SECONDS * 2.0**self._failures, LONGEST_PAUSE_SECONDS)
            ends = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(ends):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _write_all(self) -> None:
        """Write batch after batch, until all that was taken before is in the store, or the store refuses."""
        goal = self._taken
        while (batch := self._next()) is not None:
            try:
                await self._database.write(batch.write)
            except Exception as error:  # noqa: BLE001 - whatever it is, records wait and the log says so
                self._put_back(batch)
                # Else not the store's fault: what cannot be written must not hold up the rest.
                if isinstance(error, StorageError) or not self._single_out(batch, error):
                    self._refused(error)
                    return
                continue
            self._stored(batch)
            # What came meanwhile waits its turn: under load, batches are to be few and large.
            if self._settled >= goal and not self._owed:
                break
        self._end_flushes(None)

    def _next(self) -> Batch | None:
        for hit in self._limiter.changed():
            self._hits[hit.user_id, hit.router_id, hit.minute] = hit
        if not (self._pending or self._owed or self._hits):
            return None
        records = [self._pending.popleft() for _ in range(min(len(self._pending), self._batch_size))]
        costs, self._owed = self._owed, Counter()
        for record in records:
            costs[record.user_id] += record.cost
        hits, self._hits = list(self._hits.values()), {}
        return Batch(self._ledger.write(costs), records, costs, hits, self._limiter.minute)

    def _stored(self, batch: Batch) -> None:
        self._ledger.stored()
        self._settled += len(batch.records)
        self._batch_size = min(self._batch_size * 2, BATCH)
        if self._failures:
            log.info("usage records are written again; %d were given up", self._lost)
            self._failures = self._lost = 0

    def _put_back(self, batch: Batch) -> None:
        self._ledger.refused()
        self._pending.extendleft(reversed(batch.records))
        self._owed.update(batch.costs)
        for record in batch.records:
            self._owed[record.user_id] -= record.cost
        self._owed = +self._owed
        oldest = self._limiter.minute - KEPT_MINUTES
        for hit in batch.hits:
            if hit.minute >= oldest:
                self._hits.setdefault((hit.user_id, hit.router_id, hit.minute), hit)
        self._shed()

    def _refused(self, error: Exception) -> None:
        self._failures = min(self._failures + 1, 10)
        self._complain(f"usage records cannot be written: {error}")
        self._end_flushes(error)

    def _single_out(self, batch: Batch, error: Exception) -> bool:
        """Halve the batch, until the record that cannot be written is alone in it and is given up.

        Returns False when it is none of the records.
        """
        if not batch.records:
            return False
        if len(batch.records) > 1:
            self._batch_size = len(batch.records) // 2
        elif self._pending and self._pending[0] is batch.records[0]:
            log.error(
                "a usage record cannot be written and is given up: %r", batch.records[0], exc_info=error
            )
            self._give_up_oldest()
        return True

    def _shed(self) -> None:
        if len(self._pending) <= MOST_PENDING:
            return
        while len(self._pending) > MOST_PENDING:
            self._give_up_oldest()
            self._lost += 1
        self._complain("usage records come faster than they are written")

    def _give_up_oldest(self) -> None:
        record = self._pending.popleft()
        if record.cost:
            self._owed[record.user_id] += record.cost
        self._settled += 1

    def _complain(self, what: str) -> None:
        """Say it at most once a minute."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            log.error("%s; %d wait, %d were given up", what, self.pending, self._lost)

    def _end_flushes(self, error: Exception | None) -> None:
        """Tell those who wait that their records are in the store, or (all of them) that they cannot be."""
        waiting, self._flushes = self._flushes, []
        for target, written in waiting:
            if written.done():  # who waited has left
                continue
            if error is not None:
                written.set_exception(error)
            elif target <= self._settled:
                written.set_result(None)
            else:
                self._flushes.append((target, written))
