"""Refused keys, counted by source and minute: a flood of them is a few lines in the log."""

from __future__ import annotations

import ipaddress
import logging
import time
from datetime import UTC, datetime

import msgspec

log = logging.getLogger(__name__)

# Of more sources in a minute, or more lines in a day, the rest is one line.
SOURCES_A_MINUTE = 1000
LINES_A_DAY = 10_000
OTHERS = "others"
# Lines that may wait while the store cannot be written.
LONGEST_QUEUE = 5000
MINUTES_A_DAY = 1440


class Refusal(msgspec.Struct, frozen=True):
    """So many requests with a refused key came from ``source`` in ``minute`` (since the epoch)."""

    minute: int
    source: str
    requests: int

    @property
    def when(self) -> str:
        """The minute in words, UTC."""
        return f"{datetime.fromtimestamp(self.minute * 60, UTC):%Y-%m-%dT%H:%MZ}"


class RefusedKeys:
    """The counters. Used on the event loop only; counting takes no more than a look-up."""

    def __init__(self) -> None:
        self.total = 0
        self._minute = 0
        self._counts: dict[str, int] = {}
        self._waiting: list[Refusal] = []
        self._day = 0
        self._lines_of_day = 0

    def count(self, source: str) -> None:
        """Count a request from an address."""
        self.total += 1
        self._turn(int(time.time()) // 60)
        source = _network(source)
        if source not in self._counts and len(self._counts) >= SOURCES_A_MINUTE:
            source = OTHERS
        self._counts[source] = self._counts.get(source, 0) + 1

    def take(self, *, all_of_it: bool = False) -> list[Refusal]:
        """Return what the minutes that are over counted (``all_of_it``: the present one too), and forget it."""
        self._turn(int(time.time()) // 60)
        if all_of_it:
            self._finish()
        taken, self._waiting = self._waiting, []
        return taken

    def put_back(self, refusals: list[Refusal]) -> None:
        """Keep for later what could not be written; what is too much goes to the journal alone."""
        self._waiting = refusals + self._waiting
        lost = self._waiting[LONGEST_QUEUE:]
        if lost:
            del self._waiting[LONGEST_QUEUE:]
            log.error(
                "%d requests with refused keys are not in the audit log: the store cannot be written",
                sum(refusal.requests for refusal in lost),
            )

    def _turn(self, minute: int) -> None:
        if minute != self._minute:
            self._finish()
            self._minute = minute

    def _finish(self) -> None:
        """Make lines of the counters, as many as the day has left, those of most requests first."""
        if not self._counts:
            return
        day = self._minute // MINUTES_A_DAY
        if day != self._day:
            self._day, self._lines_of_day = day, 0
        others = self._counts.pop(OTHERS, 0)
        ranked = sorted(self._counts.items(), key=lambda item: item[1], reverse=True)
        kept = max(0, LINES_A_DAY - self._lines_of_day)
        others += sum(requests for _, requests in ranked[kept:])
        lines = [Refusal(self._minute, source, requests) for source, requests in ranked[:kept]]
        self._lines_of_day += len(lines)
        if others:
            lines.append(Refusal(self._minute, OTHERS, others))
        self._counts = {}
        self.put_back(lines)


def _network(source: str) -> str:
    """Return an IPv4 address as it is, an IPv6 address as the /64 that one host has for itself."""
    if ":" not in source:
        return source
    try:
        address = ipaddress.IPv6Address(source.partition("%")[0])
    except ValueError:
        return source
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)))
