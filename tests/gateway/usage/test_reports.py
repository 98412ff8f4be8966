"""Sums of tokens by windows, from records and from what was rolled up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from appliance.errors import InvalidRequestError
from appliance.gateway.usage import reports
from appliance.gateway.usage.reports import ReportRequest, ReportRow, report
from appliance.gateway.usage.windows import HOUR, MINUTE, QUARTER, WindowSize, zone_of
from appliance.storage.database import Database
from tests.gateway.usage.store import USER, keep, ms, open_store, record

_SERIES = """
CREATE TABLE series AS WITH RECURSIVE numbers (n) AS (
    SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?
)
SELECT n FROM numbers
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def asked(start: str, end: str, size: WindowSize = "DAY", zone: str = "UTC", **fields: Any) -> ReportRequest:
    found = zone_of(zone)
    assert found is not None
    values = {"by_model": False, "models": None, **fields}
    return ReportRequest(user_id=USER, start=ms(start), end=ms(end), size=size, zone=found, **values)


def ask(database: Database, *arguments: Any, **fields: Any) -> list[ReportRow]:
    return database.read_sync(lambda db: report(db, asked(*arguments, **fields)))


def test_borders_are_half_open(database: Database) -> None:
    start, end = "2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00"
    keep(database, *(record(at) for at in (ms(start) - 1, ms(start), ms(end) - 1, ms(end))))
    rows = ask(database, start, end)
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(20, 4)]


def test_windows_are_not_clipped_and_only_those_with_traffic_are_shown(database: Database) -> None:
    keep(database, record(ms("2026-03-01T10:30:00+00:00")), record(ms("2026-03-04T10:30:00+00:00")))
    rows = ask(database, "2026-03-01T10:00:00+00:00", "2026-03-04T11:00:00+00:00")
    assert [(row.start, row.end) for row in rows] == [
        (ms("2026-03-01T00:00:00+00:00"), ms("2026-03-02T00:00:00+00:00")),
        (ms("2026-03-04T00:00:00+00:00"), ms("2026-03-05T00:00:00+00:00")),
    ]


def test_models_are_told_apart_or_picked(database: Database) -> None:
    at = ms("2026-03-01T10:30:00+00:00")
    keep(database, record(at, model="b"), record(at + 1, model="a"), record(at + 2, model="c"))
    times = ("2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00")
    assert [row.model for row in ask(database, *times, by_model=True)] == ["a", "b", "c"]
    picked = ask(database, *times, models=frozenset({"a", "c", "\ud800"}))
    assert [(row.model, row.prompt_tokens) for row in picked] == [(None, 20)]
    assert ask(database, *times, models=frozenset({"z"})) == []


def test_only_the_users_chats_and_completions_count(database: Database) -> None:
    at = ms("2026-03-01T10:30:00+00:00")
    keep(
        database,
        record(at),
        record(at, endpoint="/v1/completions"),
        record(at, endpoint="/v1/embeddings"),
        record(at, user_id=USER + 1),
        record(at, status=500, prompt_tokens=0, completion_tokens=0),
    )
    rows = ask(database, "2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00", by_model=True)
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(20, 4)]


def test_a_day_of_25_hours_has_the_traffic_of_all_of_them(database: Database) -> None:
    first = ms("2026-10-25T00:00:00+02:00")
    keep(database, *(record(first + hour * HOUR) for hour in range(-1, 26)))
    rows = ask(database, "2026-10-24T00:00:00+02:00", "2026-10-27T00:00:00+01:00", "DAY", "Europe/Paris")
    assert [row.prompt_tokens for row in rows] == [10, 250, 10]
    hours = ask(database, "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", "HOUR", "Europe/Paris")
    assert [row.end - row.start for row in hours] == [HOUR] * 25


def test_borders_off_the_quarters_are_met_exactly(database: Database) -> None:
    # Casey's clocks went from 00:01 to 03:01 on the 4th of October 2020.
    change = ms("2020-10-04T03:01:00+11:00")
    keep(database, *(record(change + seconds * 1000) for seconds in (-90, -30, 0, 30)))
    rows = ask(database, "2020-10-03T00:00:00+00:00", "2020-10-05T00:00:00+00:00", "HOUR", "Antarctica/Casey")
    assert [(row.start - change, row.prompt_tokens) for row in rows] == [
        (-HOUR - MINUTE, 10),
        (-MINUTE, 10),
        (0, 20),
    ]
    monrovia = ms("1971-06-01T00:44:30+00:00")
    keep(database, record(monrovia - 1), record(monrovia))
    rows = ask(database, "1971-01-01T00:00:00+00:00", "1972-01-01T00:00:00+00:00", "DAY", "Africa/Monrovia")
    assert [row.start for row in rows] == [monrovia - 24 * HOUR, monrovia]


def test_what_was_rolled_up_counts_and_shows_as_quarters_among_minutes(database: Database) -> None:
    quarter = ms("2026-03-01T10:30:00+00:00") // QUARTER
    keep(database, record(ms("2026-03-01T10:50:30+00:00")))

    def add(db: sqlite_utils.Database) -> None:
        row = [quarter, USER, "a", "/v1/chat/completions", 3, 0, 30, 6, 36, 0.0, 0.0, 0.0, 0.0]
        db.execute(f"INSERT INTO usage_quarters VALUES ({', '.join('?' * 13)})", row)  # noqa: S608

    database.write_sync(add)
    times = ("2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00")
    assert [row.prompt_tokens for row in ask(database, *times)] == [40]
    assert [(row.end - row.start, row.prompt_tokens) for row in ask(database, *times, "MINUTE")] == [
        (QUARTER, 30),
        (MINUTE, 10),
    ]


def test_more_rows_than_a_report_may_have_are_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ms("2026-03-01T00:00:00+00:00")
    keep(database, *(record(at + minute * MINUTE) for minute in range(11)))
    times = ("2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00")
    monkeypatch.setattr(reports, "MOST_ROWS", 10)
    with pytest.raises(InvalidRequestError, match="larger windows"):
        ask(database, *times, "MINUTE")
    assert len(ask(database, *times, "HOUR")) == 1
    monkeypatch.setattr(reports, "MOST_SUMS", 10)
    with pytest.raises(InvalidRequestError, match="larger windows"):
        ask(database, *times, "MINUTE")


def test_a_year_answers_in_well_under_a_second(database: Database) -> None:
    start = ms("2026-01-01T00:00:00+00:00")

    def fill(db: sqlite_utils.Database) -> None:
        # A request a minute for ninety days, and the quarters of the year before, of three models.
        db.execute(_SERIES, [max(90 * 1440, 275 * 96 * 3)])
        db.execute(
            "INSERT INTO usage (created_at, user_id, model, endpoint, method, status, latency_ms, "
            "prompt_tokens, completion_tokens, cost, kwh_min, kwh_max, kgco2eq_min, kgco2eq_max) "
            "SELECT ? + n * 60000, ?, 'model-' || (n % 3), '/v1/chat/completions', 'POST', 200, 1, 10, 2, 0, "
            "0.0, 0.0, 0.0, 0.0 FROM series WHERE n < ?",
            [start, USER, 90 * 1440],
        )
        db.execute(
            "INSERT INTO usage_quarters SELECT ? - 1 - n / 3, ?, 'model-' || (n % 3), "
            "'/v1/chat/completions', 1, 0, 10, 2, 0, 0.0, 0.0, 0.0, 0.0 FROM series WHERE n < ?",
            [start // QUARTER, USER, 275 * 96 * 3],
        )
        db.execute("DROP TABLE series")

    database.write_sync(fill)
    rows = ask(
        database,
        "2025-01-01T00:00:00+00:00",
        "2027-01-01T00:00:00+00:00",
        "DAY",
        "Europe/Paris",
        by_model=True,
    )
    assert sum(row.prompt_tokens for row in rows) == (90 * 1440 + 275 * 96 * 3) * 10
    assert len({row.start for row in rows}) in (365, 366)
