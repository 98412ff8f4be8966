"""What the store knows of past usage: single records, and token sums by windows of time.

Sums read the records and, for what is older than their retention, the quarters of an hour they were added to.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

import msgspec
import sqlite_utils

from appliance.errors import InvalidRequestError
from appliance.gateway.usage.record import UsageRecord, record_of
from appliance.gateway.usage.windows import MINUTE, QUARTER, Windows, WindowSize

# What the usage report counts.
GENERATION_ENDPOINTS = ("/v1/chat/completions", "/v1/completions")

MOST_ROWS = 50_000
# What one report may read from the store: a year of quarters for fourteen models.
MOST_SUMS = 500_000

SECOND = 1000
CSV_CHUNK = 500
NEWEST = (1 << 63) - 1


class RecordFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which records; None does not filter. Times are UTC milliseconds, both inclusive; so are the statuses."""

    start: int
    end: int
    user_id: int | None = None
    model: str | None = None
    endpoint: str | None = None
    statuses: tuple[int, int] | None = None


class ReportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is about: a user's records from ``start`` up to, not including, ``end`` (UTC milliseconds)."""

    user_id: int
    start: int
    end: int
    size: WindowSize
    zone: tzinfo
    by_model: bool
    # Only these models; None = all.
    models: frozenset[str] | None


class ReportRow(msgspec.Struct, frozen=True):
    """The tokens of one window, of one model if they are told apart. Times are UTC milliseconds."""

    start: int
    end: int
    model: str | None
    prompt_tokens: int
    completion_tokens: int


class Totals(msgspec.Struct, frozen=True):
    """Sums over records; ``cost`` in millionths of the currency."""

    records: int
    prompt_tokens: int
    completion_tokens: int
    cost: int


def records(db: sqlite_utils.Database, which: RecordFilter, offset: int, limit: int) -> list[UsageRecord]:
    """Return a page of records, the newest first."""
    where, values = _condition(which)
    query = f"SELECT * FROM usage WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"  # noqa: S608
    return [record_of(row) for row in db.query(query, [*values, limit, offset])]


def totals(db: sqlite_utils.Database, which: RecordFilter) -> Totals:
    """Return the sums over all records that the filter lets through."""
    where, values = _condition(which)
    columns = ("prompt_tokens", "completion_tokens", "cost")
    sums = ", ".join(f"ifnull(sum({column}), 0)" for column in columns)
    query = f"SELECT count(*), {sums} FROM usage WHERE {where}"  # noqa: S608
    return Totals(*db.execute(query, values).fetchone())


def chunk_before(
    db: sqlite_utils.Database, which: RecordFilter, before: tuple[int, int] = (NEWEST, NEWEST)
) -> tuple[list[UsageRecord], tuple[int, int] | None]:
    """Return the newest records older than ``before``, and what to ask for the next ones with (None: no more)."""
    where, values = _condition(which)
    query = (
        f"SELECT * FROM usage WHERE {where} AND (created_at, id) < (?, ?) "  # noqa: S608
        "ORDER BY created_at DESC, id DESC LIMIT ?"
    )
    rows = list(db.query(query, [*values, *before, CSV_CHUNK]))
    further = (rows[-1]["created_at"], rows[-1]["id"]) if len(rows) == CSV_CHUNK else None
    return [record_of(row) for row in rows], further


def report(db: sqlite_utils.Database, asked: ReportRequest) -> list[ReportRow]:
    """Return the windows with traffic, by time and model. Raises InvalidRequestError (400) when they are too many."""
    windows = Windows(asked.size, asked.zone)
    # Sums of quarters do for hours and days, unless a zone's clocks once changed at another time.
    for bucket in (MINUTE, SECOND) if asked.size == "MINUTE" else (QUARTER, MINUTE, SECOND):
        rows = _folded(_sums(db, asked, bucket), asked, windows, bucket)
        if rows is not None:
            return rows
    raise AssertionError("borders of windows are whole seconds")


# (start of the bucket, whether its records are no longer there, model, tokens of prompts, of completions)
_Sum = tuple[int, int, str, int, int]

_SUMS = """
SELECT created_at / :bucket * :bucket, 0, {model}, sum(prompt_tokens), sum(completion_tokens)
FROM usage
WHERE user_id = :user AND created_at >= :start AND created_at < :end AND endpoint IN ({endpoints})
GROUP BY 1, 3
UNION ALL
SELECT quarter * 900000, 1, {model}, prompt_tokens, completion_tokens
FROM usage_quarters
WHERE user_id = :user AND quarter >= :first AND quarter < :last AND endpoint IN ({endpoints})
LIMIT :most
"""


def _sums(db: sqlite_utils.Database, asked: ReportRequest, bucket: int) -> Iterator[_Sum]:
    """Read in one statement, so in one state of the store: a record is in one of the two tables."""
    query = _SUMS.format(
        model="model" if asked.by_model or asked.models is not None else "''",
        endpoints=", ".join(f"'{endpoint}'" for endpoint in GENERATION_ENDPOINTS),
    )
    values = {
        "user": asked.user_id,
        "start": asked.start,
        "end": asked.end,
        "first": -(-asked.start // QUARTER),
        "last": -(-asked.end // QUARTER),
        "bucket": bucket,
        "most": MOST_SUMS + 1,
    }
    found: Iterator[_Sum] = db.execute(query, values)
    return found


def _folded(
    sums: Iterator[_Sum], asked: ReportRequest, windows: Windows, bucket: int
) -> list[ReportRow] | None:
    """Add sums to windows; None when a bucket lies in two of them."""
    counted: dict[tuple[int, int, str], list[int]] = {}
    start = end = 0
    for number, (moment, rolled, model, prompt_tokens, completion_tokens) in enumerate(sums):
        if number == MOST_SUMS or len(counted) > MOST_ROWS:
            raise _too_much()
        if not prompt_tokens + completion_tokens or not (asked.models is None or model in asked.models):
            continue
        if not start <= moment < end:
            start, end = windows.around(moment)
        if not rolled and moment + bucket > end:
            return None
        # Of what was rolled up no minutes are known: the quarter is shown as a whole.
        window = (moment, moment + QUARTER) if rolled and asked.size == "MINUTE" else (start, end)
        tokens = counted.setdefault((*window, model if asked.by_model else ""), [0, 0])
        tokens[0] += prompt_tokens
        tokens[1] += completion_tokens
    if len(counted) > MOST_ROWS:
        raise _too_much()
    order = sorted(counted, key=lambda key: (key[0], key[2], key[1]))
    return [ReportRow(key[0], key[1], key[2] or None, *counted[key]) for key in order]


def _too_much() -> InvalidRequestError:
    return InvalidRequestError(
        f"The report has more than {MOST_ROWS} rows; ask for larger windows or a shorter time.",
        param="window_size",
    )


def _condition(which: RecordFilter) -> tuple[str, list[int | str]]:
    parts = ["created_at BETWEEN ? AND ?"]
    values: list[int | str] = [which.start, which.end]
    for column, value in (("user_id", which.user_id), ("model", which.model), ("endpoint", which.endpoint)):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if which.statuses is not None:
        parts.append("status BETWEEN ? AND ?")
        values += which.statuses
    return " AND ".join(parts), values
