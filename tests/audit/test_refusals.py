"""Refused keys: a line per source and minute, never more than the disk has room for."""

from __future__ import annotations

import time

import pytest

from appliance.audit.refusals import LINES_A_DAY, LONGEST_QUEUE, OTHERS, SOURCES_A_MINUTE, RefusedKeys

MINUTE = 60.0
# A day's first second.
START = 20_000 * 86_400.0


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_requests_are_counted_by_source_and_minute(clock: Clock) -> None:
    refused = RefusedKeys()
    for source in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        refused.count(source)
    assert refused.take() == []  # the minute is not over
    clock.now += MINUTE
    refused.count("10.0.0.1")

    found = [(each.minute, each.source, each.requests) for each in refused.take()]
    first = int(START // 60)
    assert found == [(first, "10.0.0.1", 2), (first, "10.0.0.2", 1)]
    assert refused.take() == []
    assert [each.requests for each in refused.take(all_of_it=True)] == [1]
    assert refused.total == 4


def test_sources_beyond_a_thousand_share_a_line(clock: Clock) -> None:
    refused = RefusedKeys()
    for number in range(SOURCES_A_MINUTE + 500):
        for _ in range(2):
            refused.count(f"10.0.{number // 256}.{number % 256}")
    clock.now += MINUTE

    found = refused.take()
    assert len(found) == SOURCES_A_MINUTE + 1
    assert (found[-1].source, found[-1].requests) == (OTHERS, 1000)
    assert sum(each.requests for each in found) == 2 * (SOURCES_A_MINUTE + 500)


def test_a_flood_of_a_day_is_a_bounded_number_of_lines(clock: Clock) -> None:
    refused = RefusedKeys()
    found = []
    for _ in range(20):
        for number in range(SOURCES_A_MINUTE):
            refused.count(f"10.0.{number // 256}.{number % 256}")
        clock.now += MINUTE
        found += refused.take()

    assert len([each for each in found if each.source != OTHERS]) == LINES_A_DAY
    assert sum(each.requests for each in found) == 20 * SOURCES_A_MINUTE
    clock.now += 86_400
    refused.count("10.0.0.1")
    assert [each.source for each in refused.take(all_of_it=True)] == ["10.0.0.1"]  # another day


def test_one_host_cannot_be_many_sources_by_its_ipv6_addresses(clock: Clock) -> None:
    refused = RefusedKeys()
    for number in range(100):
        refused.count(f"2001:db8:1:2::{number:x}")
    refused.count("::ffff:10.0.0.1")
    refused.count("fe80::1%eth0")

    found = {each.source: each.requests for each in refused.take(all_of_it=True)}
    assert found == {"2001:db8:1:2::/64": 100, "10.0.0.1": 1, "fe80::/64": 1}


def test_what_cannot_be_written_waits_in_bounded_memory(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    refused = RefusedKeys()
    for _ in range(8):
        for number in range(SOURCES_A_MINUTE):
            refused.count(f"10.0.{number // 256}.{number % 256}")
        clock.now += MINUTE
        refused.put_back(refused.take())

    assert len(refused.take()) == LONGEST_QUEUE
    assert "not in the audit log" in caplog.text
