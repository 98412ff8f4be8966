"""Old records become sums of quarters; nothing is lost or counted twice, whenever the power fails."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import now_ms
from appliance.gateway.usage import retention
from appliance.gateway.usage.reports import GENERATION_ENDPOINTS, ReportRequest, report
from appliance.gateway.usage.retention import DAY_MS, Retention
from appliance.gateway.usage.windows import QUARTER, zone_of
from appliance.storage.database import Database
from tests.gateway.usage.store import USER, keep, open_store, record


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def rows(database: Database, query: str) -> list[dict[str, Any]]:
    return database.read_sync(lambda db: list(db.query(query)))


def totals(database: Database) -> tuple[Any, ...]:
    columns = ("prompt_tokens", "completion_tokens", "cost", "kwh_min", "kgco2eq_max")
    sums = ", ".join(f"sum({column})" for column in columns)
    query = (
        f"SELECT sum(n), {sums} FROM (SELECT 1 AS n, {', '.join(columns)} FROM usage "  # noqa: S608
        f"UNION ALL SELECT requests, {', '.join(columns)} FROM usage_quarters)"
    )
    return database.read_sync(lambda db: tuple(db.execute(query).fetchone()))


def reported(database: Database) -> int:
    zone = zone_of("UTC")
    assert zone is not None
    asked = ReportRequest(
        user_id=USER, start=0, end=now_ms() + 1, size="DAY", zone=zone, by_model=True, models=None
    )
    return sum(row.prompt_tokens for row in database.read_sync(lambda db: report(db, asked)))


def test_only_what_is_older_than_the_retention_is_rolled_up(database: Database) -> None:
    old, young = (now_ms() - 11 * DAY_MS) // QUARTER * QUARTER, now_ms() - 9 * DAY_MS
    keep(
        database,
        record(old),
        record(old + 1, status=503, prompt_tokens=0, completion_tokens=0, cost=0),
        record(old + 2, endpoint=GENERATION_ENDPOINTS[1], model="b"),
        record(young),
    )
    before = totals(database)
    assert asyncio.run(Retention(database, 10).roll_up()) == 3
    assert [row["created_at"] for row in rows(database, "SELECT created_at FROM usage")] == [young]
    first, second = rows(database, "SELECT * FROM usage_quarters ORDER BY model")
    assert (first["quarter"], first["user_id"], first["model"]) == (old // QUARTER, USER, "a")
    assert (first["requests"], first["failures"], first["prompt_tokens"], first["cost"]) == (2, 1, 10, 12)
    assert (second["model"], second["endpoint"], second["requests"]) == ("b", "/v1/completions", 1)
    assert totals(database) == before
    assert reported(database) == 30


def test_rolling_up_again_changes_nothing_and_late_records_are_added(database: Database) -> None:
    old = (now_ms() - 11 * DAY_MS) // QUARTER * QUARTER
    keep(database, record(old))
    rolling = Retention(database, 10)
    assert asyncio.run(rolling.roll_up()) == 1
    assert asyncio.run(rolling.roll_up()) == 0
    keep(database, record(old + 1))
    assert asyncio.run(rolling.roll_up()) == 1
    (row,) = rows(database, "SELECT * FROM usage_quarters")
    assert (row["requests"], row["prompt_tokens"], row["kwh_max"]) == (2, 20, 2.0)


def test_many_records_go_chunk_by_chunk(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHUNK", 7)
    old = now_ms() - 20 * DAY_MS
    # Some at the same millisecond, across the end of a chunk.
    keep(database, *(record(old + number // 3 * 60_000) for number in range(100)))
    before = totals(database)
    assert asyncio.run(Retention(database, 10).roll_up()) == 100
    assert totals(database) == before
    assert rows(database, "SELECT 1 FROM usage") == []


def test_a_running_service_rolls_up_at_its_start(database: Database) -> None:
    keep(database, record(now_ms() - 20 * DAY_MS))

    async def live() -> None:
        rolling = Retention(database, 10)
        rolling.start()
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if not rows(database, "SELECT 1 FROM usage"):
                break
        await rolling.close()

    asyncio.run(live())
    assert rows(database, "SELECT 1 FROM usage") == []
    assert reported(database) == 10


ROLLER = """
import asyncio, sys
from pathlib import Path
from appliance.gateway.usage import retention
from tests.gateway.usage.store import open_store

retention.CHUNK = 5
database = open_store(Path(sys.argv[1]))
real = database.write

async def write(function):
    # Each chunk is said, and goes on when it is told to.
    print("chunk", flush=True)
    sys.stdin.readline()
    return await real(function)

database.write = write
asyncio.run(retention.Retention(database, 10).roll_up())
"""


def test_kill_9_at_any_instant_counts_nothing_twice(tmp_path: Path) -> None:
    count, old = 2000, now_ms() - 20 * DAY_MS
    database = open_store(tmp_path)
    keep(database, *(record(old + number * 1000) for number in range(count)))
    before = totals(database)
    database.close()
    randomness = random.Random(3)
    left = count
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", ROLLER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as roller:
            assert roller.stdin is not None
            assert roller.stdout is not None
            for _ in range(randomness.randint(2, 30)):  # all that came before is done when the next begins
                assert roller.stdout.readline() == "chunk\n"
                roller.stdin.write("go\n")
                roller.stdin.flush()
            time.sleep(randomness.uniform(0, 0.01))
            roller.send_signal(signal.SIGKILL)
        database = open_store(tmp_path)
        assert totals(database) == before
        now = len(rows(database, "SELECT id FROM usage"))
        database.close()
        # It came while it was at work.
        assert 0 < now < left
        left = now
