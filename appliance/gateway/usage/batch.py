"""What one transaction writes: usage records, what they take from budgets, and the counters of limits."""

from __future__ import annotations

from collections import Counter

import msgspec
import sqlite_utils

from appliance.clock import now_ms
from appliance.gateway.budget import StoredBudget
from appliance.gateway.limits.limiter import DAY_BUCKETS, LimitHit
from appliance.gateway.usage.record import UsageRecord

# Limit counters are of use for a day and a minute.
KEPT_MINUTES = DAY_BUCKETS + 60
INT64_MAX = (1 << 63) - 1

# The user may have been deleted since: then the record is nobody's, like those before it.
_INSERT = """
INSERT INTO usage (created_at, user_id, email, key_id, key_name, router_id, model, provider_id, provider_model,
                   endpoint, method, status, latency_ms, ttft_ms, prompt_tokens, completion_tokens, cost,
                   kwh_min, kwh_max, kgco2eq_min, kgco2eq_max, measured)
VALUES (?, (SELECT id FROM users WHERE id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_DEDUCT = """
UPDATE users SET budget = max(0, budget - ?), updated_at = ? WHERE id = ? AND budget IS NOT NULL
"""
_NUMBER = """
INSERT INTO usage_batches (one, number) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET number = excluded.number
"""
# One statement, so one state of the store: the budget and the batches that were taken from it. Two look-ups by rowid.
_BUDGET = """
SELECT usage_batches.number, users.id IS NULL, users.budget
FROM usage_batches LEFT JOIN users ON users.id = ? WHERE usage_batches.one = 1
"""
_COUNT = """
INSERT INTO limit_hits (user_id, router_id, minute, requests, tokens) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET requests = excluded.requests, tokens = excluded.tokens
"""
# Seldom more than a minute's rows: the index on the minute finds them.
_PRUNE = "DELETE FROM limit_hits WHERE minute < ?"
# What was counted in the future, before the clock was set back, counts as now.
_MEND = """
INSERT INTO limit_hits (user_id, router_id, minute, requests, tokens)
SELECT user_id, router_id, :now, sum(requests), sum(tokens) FROM limit_hits WHERE minute > :now
GROUP BY user_id, router_id
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, tokens = tokens + excluded.tokens
"""


class Batch(msgspec.Struct, frozen=True):
    """Records, the budget taken by user (millionths), and limit counters as of ``minute`` (since the epoch).

    ``number`` is the ledger's, greater than that of every batch before.
    """

    number: int
    records: list[UsageRecord]
    costs: Counter[int]
    hits: list[LimitHit]
    minute: int

    def write(self, db: sqlite_utils.Database) -> None:
        """Write all of it, inside a write task."""
        now = now_ms()
        costs = [(min(cost, INT64_MAX), now, user_id) for user_id, cost in self.costs.items() if cost > 0]
        hits = [(hit.user_id, hit.router_id, hit.minute, hit.requests, hit.tokens) for hit in self.hits]
        db.conn.executemany(_INSERT, [_row(record) for record in self.records])
        db.conn.executemany(_DEDUCT, costs)
        db.execute(_NUMBER, [self.number])
        db.conn.executemany(_COUNT, hits)
        db.execute(_PRUNE, [self.minute - KEPT_MINUTES])


def last_batch(db: sqlite_utils.Database) -> int:
    """Return the number of the last batch in the store."""
    return int(db.execute("SELECT number FROM usage_batches").fetchone()[0])


def read_budget(db: sqlite_utils.Database, user_id: int) -> StoredBudget | None:
    """Return a user's budget, None when it has no bound. Who was deleted has nothing left."""
    batch, deleted, amount = db.execute(_BUDGET, [user_id]).fetchone()
    if deleted:
        return StoredBudget(0, batch)
    return None if amount is None else StoredBudget(amount, batch)


def load_hits(db: sqlite_utils.Database, minute: int) -> list[LimitHit]:
    """Return the limit counters of the last day, ``minute`` being the present one, inside a write task."""
    db.execute(_PRUNE, [minute - KEPT_MINUTES])
    db.execute(_MEND, {"now": minute})
    db.execute("DELETE FROM limit_hits WHERE minute > ?", [minute])
    return [
        LimitHit(**row)
        for row in db.query("SELECT user_id, router_id, minute, requests, tokens FROM limit_hits")
    ]


def _row(record: UsageRecord) -> tuple[int | float | str | None, ...]:
    burned = record.footprint
    return (
        record.created_at,
        record.user_id,
        record.email,
        record.key_id,
        record.key_name,
        record.router_id,
        record.model,
        record.provider_id,
        record.provider_model,
        record.endpoint,
        record.method,
        record.status,
        record.latency_ms,
        record.ttft_ms,
        # An upstream server may have counted anything.
        min(record.prompt_tokens, INT64_MAX),
        min(record.completion_tokens, INT64_MAX),
        record.cost,
        burned.kwh_min,
        burned.kwh_max,
        burned.kgco2eq_min,
        burned.kgco2eq_max,
        int(burned.measured),
    )
