"""Usage records reach the store with what they took, whole, once, and never in the way of a request."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlite_utils

from appliance.gateway.budget import Ledger
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.routing.records import UNLIMITED
from appliance.gateway.usage import log as usage_log
from appliance.gateway.usage.log import UsageLog
from appliance.gateway.usage.record import Footprint, UsageRecord
from appliance.storage.database import Database
from appliance.storage.errors import StorageError, StoreFullError
from appliance.storage.migrations import MIGRATIONS

RECORD = UsageRecord(
    created_at=1_700_000_000_000,
    user_id=1,
    email="someone@example.org",
    key_id=4,
    key_name="mine",
    router_id=2,
    model="a-model",
    provider_id=3,
    provider_model="a-pack",
    endpoint="/v1/chat/completions",
    method="POST",
    status=200,
    latency_ms=120,
    ttft_ms=30,
    prompt_tokens=10,
    completion_tokens=20,
    cost=50,
    footprint=Footprint(kwh_min=0.1, kwh_max=0.2, kgco2eq_min=0.3, kgco2eq_max=0.4, measured=True),
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A log over a store of its own, with user 1 who has 1000 millionths and user 2 without a limit."""

    def __init__(self, path: Path) -> None:
        self.database = Database.open(path, MIGRATIONS)
        self.clock = Clock()
        self.limiter = Limiter(self.clock)
        self.ledger = Ledger()
        self.log = UsageLog(self.database, self.ledger, self.limiter)
        self.failing: StorageError | None = None
        self.attempts = 0
        real = self.database.write

        async def write(function: Callable[[sqlite_utils.Database], Any]) -> Any:
            self.attempts += 1
            if self.failing is not None:
                raise self.failing
            return await real(function)

        self.database.write = write  # type: ignore[method-assign]

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return self.database.read_sync(lambda db: list(db.query(sql, list(values))))

    def budget(self, user_id: int) -> int | None:
        budget: int | None = self.rows("SELECT budget FROM users WHERE id = ?", user_id)[0]["budget"]
        return budget

    def count(self) -> int:
        return int(self.rows("SELECT count(*) AS n FROM usage")[0]["n"])


def people(db: sqlite_utils.Database) -> None:
    db.execute("INSERT INTO roles VALUES (1, 'role', 0, 0)")
    for user_id, budget in ((1, 1000), (2, None)):
        db.execute(
            "INSERT INTO users (id, email, role_id, budget, created_at, updated_at) VALUES (?, ?, 1, ?, 0, 0)",
            [user_id, f"user-{user_id}@example.org", budget],
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    database = Database.open(path, MIGRATIONS)
    database.write_sync(people)
    database.close()
    return path


@pytest.fixture
async def rig(path: Path) -> AsyncIterator[Rig]:
    rig = Rig(path)
    await rig.log.start()
    yield rig
    rig.failing = None
    await rig.log.close()
    rig.database.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait less between attempts."""
    monkeypatch.setattr(usage_log, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(usage_log, "LONGEST_PAUSE_SECONDS", 0.05)
    return iter(())


def record(**fields: Any) -> UsageRecord:
    return msgspec.structs.replace(RECORD, **fields)


async def test_a_record_is_stored_with_all_its_columns(rig: Rig) -> None:
    rig.log.add(RECORD)
    await rig.log.flush()

    row = rig.rows("SELECT * FROM usage")[0]
    footprint = (
        row.pop("measured"),
        *(row.pop(f"{kind}_{end}") for kind in ("kwh", "kgco2eq") for end in ("min", "max")),
    )
    expected = msgspec.structs.asdict(RECORD)
    expected.pop("footprint")
    assert {**row, "id": None} == {**expected, "id": None}
    assert footprint == (1, 0.1, 0.2, 0.3, 0.4)


async def test_the_budget_goes_down_and_its_user_was_updated(rig: Rig) -> None:
    rig.log.add(record(cost=300))
    rig.log.add(record(cost=1))
    assert rig.ledger.held(1) == 301
    await rig.log.flush()

    assert rig.budget(1) == 699
    assert rig.ledger.held(1) == 0
    assert rig.rows("SELECT updated_at FROM users WHERE id = 1")[0]["updated_at"] > 0
    assert rig.rows("SELECT updated_at FROM users WHERE id = 2")[0]["updated_at"] == 0


async def test_a_budget_never_goes_below_nothing_and_an_absent_one_stays_absent(rig: Rig) -> None:
    rig.log.add(record(cost=5000))
    rig.log.add(record(user_id=2, cost=5000))
    await rig.log.flush()

    assert (rig.budget(1), rig.budget(2)) == (0, None)
    assert not rig.ledger._held


async def test_it_writes_by_itself_within_a_second(rig: Rig) -> None:
    rig.log.add(RECORD)
    rig.limiter.admit_request(1, 2, UNLIMITED)
    # Until it is begun; the rest of the second is for the disk, which may be busy.
    assert usage_log.WRITE_SECONDS <= 0.5
    for _ in range(3000):
        if rig.log.pending == 0:
            break
        await asyncio.sleep(0.01)

    assert rig.count() == 1
    assert rig.log.pending == 0
    assert rig.rows("SELECT requests FROM limit_hits") == [{"requests": 1}]


async def test_counters_are_written_without_any_record(rig: Rig) -> None:
    rig.limiter.admit_request(1, 2, UNLIMITED)
    rig.limiter.admit_tokens(1, 2, UNLIMITED, 12)
    await rig.log.flush()
    rig.limiter.admit_request(1, 2, UNLIMITED)
    await rig.log.flush()

    minute = int(rig.clock.now // 60)
    assert rig.rows("SELECT * FROM limit_hits") == [
        {"user_id": 1, "router_id": 2, "minute": minute, "requests": 2, "tokens": 12}
    ]


async def test_adding_does_not_touch_the_store(rig: Rig) -> None:
    before = rig.attempts
    for _ in range(10_000):
        rig.log.add(RECORD)

    assert rig.attempts == before
    assert rig.log.pending == 10_000
    await rig.log.flush()
    assert rig.count() == 10_000


async def test_under_load_batches_are_few(rig: Rig) -> None:
    before = rig.attempts
    ends = time.monotonic() + 1.6
    added = 0
    while time.monotonic() < ends:
        rig.log.add(record(cost=0))
        added += 1
        await asyncio.sleep(0.001)
    await rig.log.flush()

    assert rig.count() == added
    assert rig.attempts - before <= 6


async def test_what_comes_while_the_store_is_slow_does_not_wait_for_it_and_then_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_log, "WRITE_SECONDS", 3600.0)
    rig = Rig(path)
    real, began, go_on, done = rig.database.write, asyncio.Event(), asyncio.Event(), asyncio.Event()
    await rig.log.start()

    async def slow(function: Callable[[sqlite_utils.Database], Any]) -> Any:
        began.set()
        await go_on.wait()
        result = await real(function)
        if rig.count() == 2:
            done.set()
        return result

    monkeypatch.setattr(rig.database, "write", slow)
    rig.log.add(RECORD)
    flushed = asyncio.create_task(rig.log.flush())
    await began.wait()
    rig.log.add(RECORD)
    # The store takes an hour, as long as a record may wait: the second one has waited for that long by now.
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + 3600.0)
    go_on.set()
    await flushed
    async with asyncio.timeout(30):
        await done.wait()

    await rig.log.close()
    rig.database.close()


async def test_closing_writes_the_rest(path: Path) -> None:
    rig = Rig(path)
    await rig.log.start()
    for _ in range(9000):
        rig.log.add(record(cost=0))
    await rig.log.close()

    assert rig.count() == 9000
    with pytest.raises(StorageError):
        await rig.log.flush()
    rig.database.close()


async def test_a_user_who_is_gone_leaves_nobodys_record(rig: Rig) -> None:
    await rig.database.write(lambda db: db.execute("DELETE FROM users WHERE id = 1") and None)
    rig.log.add(record(cost=7))
    rig.log.add(record(user_id=2))
    await rig.log.flush()

    rows = rig.rows("SELECT user_id, email, cost FROM usage ORDER BY id")
    assert rows[0] == {"user_id": None, "email": RECORD.email, "cost": 7}
    assert rows[1]["user_id"] == 2
    assert not rig.ledger._held


@pytest.mark.usefixtures("quick")
async def test_while_the_disk_is_full_everything_waits_and_is_written_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.failing = StoreFullError("The disk is full.", retry_after=60)
    for _ in range(10):
        rig.log.add(record(cost=10))
        rig.limiter.admit_request(1, 2, UNLIMITED)
        await asyncio.sleep(0.03)
    with pytest.raises(StoreFullError):
        await rig.log.flush()
    assert rig.attempts > 3
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1
    assert rig.ledger.held(1) == 100
    assert rig.log.pending == 10

    rig.failing = None
    await rig.log.flush()

    assert rig.count() == 10
    assert rig.budget(1) == 900
    assert rig.rows("SELECT requests FROM limit_hits") == [{"requests": 10}]
    assert not rig.ledger._held


@pytest.mark.usefixtures("quick")
async def test_what_a_full_file_refuses_is_written_when_there_is_room(rig: Rig) -> None:
    def bound(db: sqlite_utils.Database, room: int) -> None:
        # Like a full disk: SQLite refuses to let the file grow.
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + room}")

    await rig.database.write(lambda db: bound(db, 1))
    for number in range(2000):
        rig.log.add(record(cost=0 if number else 400, latency_ms=number))
    rig.limiter.admit_request(1, 2, UNLIMITED)
    with pytest.raises(StorageError):
        await rig.log.flush()
    assert (rig.count(), rig.budget(1), rig.rows("SELECT * FROM limit_hits")) == (0, 1000, [])

    await rig.database.write(lambda db: bound(db, 10_000))
    await rig.log.flush()

    assert [row["latency_ms"] for row in rig.rows("SELECT latency_ms FROM usage ORDER BY id")] == list(
        range(2000)
    )
    assert rig.budget(1) == 600
    assert len(rig.rows("SELECT * FROM limit_hits")) == 1


@pytest.mark.usefixtures("quick")
async def test_a_store_that_refuses_for_long_costs_records_but_no_deduction(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_log, "MOST_PENDING", 50)
    rig.failing = StoreFullError("The disk is full.")
    for number in range(300):
        rig.log.add(record(cost=2, latency_ms=number))
        if number % 40 == 0:
            await asyncio.sleep(0.02)
    assert rig.log.pending == 50
    assert rig.ledger.held(1) == 600

    rig.failing = None
    await rig.log.flush()

    kept = [row["latency_ms"] for row in rig.rows("SELECT latency_ms FROM usage ORDER BY id")]
    assert kept == list(range(250, 300))
    assert rig.budget(1) == 400
    assert not rig.ledger._held


@pytest.mark.usefixtures("quick")
async def test_a_record_that_cannot_be_written_holds_up_nobody(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    poison = Footprint(kwh_min=math.nan)
    for number in range(100):
        rig.log.add(
            record(cost=1, latency_ms=number, **({"footprint": poison} if number in (17, 63) else {}))
        )
    rig.log.add(record(prompt_tokens=1 << 70, latency_ms=100, cost=1))
    await rig.log.flush()
    await rig.log.flush()

    kept = {row["latency_ms"] for row in rig.rows("SELECT latency_ms FROM usage")}
    assert kept == set(range(101)) - {17, 63}
    assert rig.budget(1) == 1000 - 101, "what it cost is taken all the same"
    assert sum("given up" in each.message for each in caplog.records) == 2
    assert not rig.ledger._held


async def test_who_gives_up_waiting_disturbs_nothing(rig: Rig) -> None:
    rig.log.add(RECORD)
    waiting = asyncio.create_task(rig.log.flush())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(*(rig.log.flush() for _ in range(20)))

    assert rig.count() == 1
    assert rig.budget(1) == 950


async def test_counters_come_back_after_a_restart_and_old_ones_go(path: Path) -> None:
    rig = Rig(path)
    minute = int(rig.clock.now // 60)

    def store(db: sqlite_utils.Database) -> None:
        rows = [(1, 2, minute - 1600, 9, 9), (1, 2, minute - 1000, 1, 10), (1, 2, minute, 2, 20)]
        # Two of the future, as when the clock was set back.
        rows += [(1, 2, minute + 5, 4, 40), (1, 2, minute + 9000, 8, 80)]
        db.conn.executemany("INSERT INTO limit_hits VALUES (?, ?, ?, ?, ?)", rows)

    await rig.database.write(store)
    for start in range(2):  # the second start finds what the first mended
        limiter = Limiter(rig.clock)
        log = UsageLog(rig.database, Ledger(), limiter)
        await log.start()
        headers = limiter.headers(1, 2, msgspec.structs.replace(UNLIMITED, rpd=100, tpd=1000))
        assert headers["x-ratelimit-remaining-requests"] == str(100 - 15 - start)
        assert headers["x-ratelimit-remaining-tokens"] == str(1000 - 150)
        limiter.admit_request(1, 2, UNLIMITED)
        await log.close()

    assert rig.rows("SELECT minute, requests, tokens FROM limit_hits ORDER BY minute") == [
        {"minute": minute - 1000, "requests": 1, "tokens": 10},
        {"minute": minute, "requests": 16, "tokens": 140},
    ]
    rig.database.close()


async def test_counters_are_pruned_while_it_runs(rig: Rig) -> None:
    for _ in range(5):
        rig.limiter.admit_request(1, 2, UNLIMITED)
        await rig.log.flush()
        rig.clock.now += 8 * 3600
    rig.limiter.admit_request(1, 2, UNLIMITED)
    await rig.log.flush()

    oldest = rig.rows("SELECT min(minute) AS m, count(*) AS n FROM limit_hits")[0]
    assert oldest["m"] >= int(rig.clock.now // 60) - 1500
    assert oldest["n"] == 4


async def test_a_failing_store_at_the_end_is_said_and_does_not_hang(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(path)
    await rig.log.start()
    rig.failing = StoreFullError("The disk is full.")
    rig.log.add(RECORD)
    async with asyncio.timeout(5):
        await rig.log.close()

    assert "1 usage records" in caplog.text
    rig.database.close()
