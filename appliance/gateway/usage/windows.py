"""Minutes, hours and days of a time zone as stretches of time, whatever its clocks do.

Zones come from the tzdata package, not from the machine: every box knows the same ones.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from importlib.resources import files
from typing import Literal
from zoneinfo import ZoneInfo

WindowSize = Literal["MINUTE", "HOUR", "DAY"]

# Milliseconds.
MINUTE, QUARTER, HOUR = 60_000, 900_000, 3_600_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_STEP = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)

UTC_NAMES = frozenset({"UTC", "UCT", "Zulu", "Universal", "Etc/UTC", "Etc/UCT", "Etc/Zulu", "Etc/Universal"})


def zone_of(name: str) -> tzinfo | None:
    """Return the IANA time zone of that name; None when there is none. Every name of UTC is UTC itself."""
    if name in UTC_NAMES:
        return UTC
    return _load(name) if name in _names() else None


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text("ascii").split())


@lru_cache(maxsize=64)
def _load(name: str) -> ZoneInfo:
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


class Windows:
    """The windows of one size in one zone. Times are UTC milliseconds, windows half-open.

    A day lasts from its first moment to the next day's: 23 or 25 hours where clocks change. Minutes and hours
    end where the zone's offset changes: an hour that comes twice makes two windows.
    """

    def __init__(self, size: WindowSize, zone: tzinfo) -> None:
        self.zone = zone
        self._size = size
        self._midnights: dict[date, int] = {}

    def around(self, moment: int) -> tuple[int, int]:
        """Return the borders of the window that holds a moment."""
        if self._size == "DAY":
            return self._day(moment)
        length = MINUTE if self._size == "MINUTE" else HOUR
        offset = self._offset(moment)
        start = (moment + offset) // length * length - offset
        end = start + length
        if self._offset(start) != offset:
            start = self._change(start, moment)
        if self._offset(end - 1) != offset:
            end = self._change(moment, end - 1)
        return start, end

    def text(self, moment: int) -> str:
        """Return a moment as RFC 3339 with the zone's offset, ``Z`` in UTC."""
        shown = self._local(moment).isoformat(timespec="milliseconds" if moment % 1000 else "seconds")
        return shown.replace("+00:00", "Z") if self.zone is UTC else shown

    def _day(self, moment: int) -> tuple[int, int]:
        day = self._local(moment).date()
        # Clocks set back over midnight show the day before once more: it has ended all the same.
        if moment >= self._midnight(day + DAY_STEP):
            day += DAY_STEP
        return self._midnight(day), self._midnight(day + DAY_STEP)

    def _midnight(self, day: date) -> int:
        """Return the first moment of a day."""
        found = self._midnights.get(day)
        if found is None:
            found = self._midnights[day] = self._first_moment(datetime(day.year, day.month, day.day))
        return found

    def _first_moment(self, reading: datetime) -> int:
        """Return when the zone's clocks first show ``reading`` or, where they skip it, more."""
        moment = self._moment(reading.replace(fold=0))
        if self._local(moment).replace(tzinfo=None) == reading:
            return moment
        return self._change(self._moment(reading.replace(fold=1)), moment)

    def _moment(self, reading: datetime) -> int:
        return (reading.replace(tzinfo=self.zone).astimezone(UTC) - EPOCH) // MILLISECOND

    def _local(self, moment: int) -> datetime:
        return (EPOCH + moment * MILLISECOND).astimezone(self.zone)

    def _offset(self, moment: int) -> int:
        return (self._local(moment).utcoffset() or timedelta()) // MILLISECOND

    def _change(self, before: int, after: int) -> int:
        """Return the first moment that has the offset of ``after``, which ``before`` has not."""
        offset = self._offset(after)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == offset:
                after = middle
            else:
                before = middle
        return after
