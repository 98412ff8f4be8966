"""Windows of time zones, where clocks change and where they do not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from appliance.gateway.usage.windows import HOUR, Windows, WindowSize, zone_of


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def windows(size: WindowSize, name: str) -> Windows:
    zone = zone_of(name)
    assert zone is not None
    return Windows(size, zone)


def around(size: WindowSize, name: str, moment: str) -> tuple[str, str]:
    found = windows(size, name)
    start, end = found.around(ms(moment))
    assert start <= ms(moment) < end
    assert found.around(start) == found.around(end - 1) == (start, end)
    return found.text(start), found.text(end)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Paris", "2026-03-28", 24),
        ("Europe/Paris", "2026-03-29", 23),
        ("Europe/Paris", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Asia/Kathmandu", "2026-03-29", 24),
        ("UTC", "2026-03-29", 24),
        # Clocks go forward at midnight: the day begins at one.
        ("Africa/Cairo", "2026-04-24", 23),
        # And back at midnight, over it: the day before is longer.
        ("Africa/Cairo", "2026-10-29", 25),
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(zone: str, day: str, hours: float) -> None:
    found = windows("DAY", zone)
    start, end = found.around(ms(f"{day}T12:00:00+00:00"))
    if found.text(start)[:10] != day:
        start, end = found.around(end)
    assert found.text(start)[:10] == day
    assert end - start == hours * HOUR
    # Nothing between it and its neighbours.
    assert found.around(start - 1)[1] == start
    assert found.around(end)[0] == end


def test_days_are_printed_with_their_own_offsets() -> None:
    assert around("DAY", "Europe/Paris", "2026-03-29T12:00:00+00:00") == (
        "2026-03-29T00:00:00+01:00",
        "2026-03-30T00:00:00+02:00",
    )
    assert around("DAY", "Asia/Kathmandu", "2026-03-29T18:14:59+00:00") == (
        "2026-03-29T00:00:00+05:45",
        "2026-03-30T00:00:00+05:45",
    )
    assert around("DAY", "Asia/Kathmandu", "2026-03-29T18:15:00+00:00")[0] == "2026-03-30T00:00:00+05:45"


@pytest.mark.parametrize("name", ["UTC", "Etc/UTC", "Zulu"])
def test_utc_is_printed_with_a_z(name: str) -> None:
    assert around("HOUR", name, "2025-05-07T14:30:00+00:00") == (
        "2025-05-07T14:00:00Z",
        "2025-05-07T15:00:00Z",
    )


def test_an_hour_that_comes_twice_makes_two_windows() -> None:
    assert around("HOUR", "Europe/Paris", "2026-10-25T00:30:00+00:00") == (
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
    )
    assert around("HOUR", "Europe/Paris", "2026-10-25T01:30:00+00:00") == (
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T03:00:00+01:00",
    )
    assert around("HOUR", "Europe/Paris", "2026-03-29T00:59:59+00:00") == (
        "2026-03-29T01:00:00+01:00",
        "2026-03-29T03:00:00+02:00",
    )


def test_clocks_that_change_by_half_an_hour_make_half_hours() -> None:
    # 02:00 +11:00 becomes 01:30 +10:30 at 15:00 UTC.
    assert around("HOUR", "Australia/Lord_Howe", "2026-04-04T14:59:00+00:00") == (
        "2026-04-05T01:00:00+11:00",
        "2026-04-05T01:30:00+10:30",
    )
    assert around("HOUR", "Australia/Lord_Howe", "2026-04-04T15:00:00+00:00") == (
        "2026-04-05T01:30:00+10:30",
        "2026-04-05T02:00:00+10:30",
    )
    # 02:00 +10:30 becomes 02:30 +11:00 at 15:30 UTC.
    assert around("HOUR", "Australia/Lord_Howe", "2026-10-03T15:40:00+00:00") == (
        "2026-10-04T02:30:00+11:00",
        "2026-10-04T03:00:00+11:00",
    )


def test_hours_of_a_zone_of_three_quarters_begin_on_its_own_clock() -> None:
    assert around("HOUR", "Asia/Kathmandu", "2026-01-01T00:20:00+00:00") == (
        "2026-01-01T06:00:00+05:45",
        "2026-01-01T07:00:00+05:45",
    )


def test_a_day_that_a_zone_skipped_is_no_window() -> None:
    # Samoa went from the 29th of December 2011 to the 31st.
    found = windows("DAY", "Pacific/Apia")
    start, end = found.around(ms("2011-12-30T09:00:00+00:00"))
    assert (found.text(start)[:10], found.text(end)[:10]) == ("2011-12-29", "2011-12-31")
    assert end - start == 24 * HOUR


def test_clocks_set_back_over_midnight_do_not_bring_a_day_back() -> None:
    # St John's went from 00:01 on the 1st of November 2009 to 23:01 on the 31st of October.
    found = windows("DAY", "America/St_Johns")
    midnight = ms("2009-11-01T00:00:00-02:30")
    for minutes in (0, 30, 59, 90):
        assert found.around(midnight + minutes * 60_000)[0] == midnight
    assert found.around(midnight - 1)[1] == midnight


def test_zones_with_odd_offsets_of_the_past_have_whole_windows() -> None:
    # Monrovia was 44 minutes 30 seconds behind until 1972.
    start, end = windows("DAY", "Africa/Monrovia").around(ms("1971-06-01T12:00:00+00:00"))
    assert datetime.fromtimestamp(start / 1000, UTC).isoformat() == "1971-06-01T00:44:30+00:00"
    assert end - start == 24 * HOUR
    start, end = windows("MINUTE", "Africa/Monrovia").around(ms("1971-06-01T12:00:00+00:00"))
    assert datetime.fromtimestamp(start / 1000, UTC).second == 30


def test_windows_follow_each_other_through_a_year() -> None:
    for zone in ("Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Antarctica/Casey"):
        for size in ("HOUR", "DAY"):
            found = windows(size, zone)
            moment, last = ms("2021-01-01T00:00:00+00:00"), ms("2022-01-01T00:00:00+00:00")
            end = found.around(moment)[1]
            while end < last:
                following = found.around(end)
                assert following[0] == end
                end = following[1]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Z",
        "utc",
        "Europe",
        "Europe/Atlantis",
        "../../etc/passwd",
        "/etc/passwd",
        "UTC\0",
        "a" * 100_000,
        "localtime",
        "\ud800",
    ],
)
def test_what_is_no_zone_is_none(name: str) -> None:
    assert zone_of(name) is None
