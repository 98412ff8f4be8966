"""Refused keys, counted by source and minute: a flood of them is a few lines in the log."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from datetime import UTC, datetime

import msgspec

log = logging.getLogger(__name__)

# Of more sources in a minute, or more lines in a day, the rest is one line.
SOURCES_A_MINUTE = 1000
LINES_A_DAY = 10_000
OTHERS = "others"
# How an IPv4 address begins that is written as an IPv6 one.
MAPPED = bytes(10) + b"\xff\xff"
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
        # IPv6 networks as bytes: their text is made once a minute only.
        self._counts: dict[str | bytes, int] = {}
        self._waiting: list[Refusal] = []
        self._day = 0
        self._lines_of_day = 0

    def count(self, source: str) -> None:
        """Count a request from an address."""
        self.total += 1
        self._turn(int(time.time()) // 60)
        peer = _peer(source)
        if peer not in self._counts and len(self._counts) >= SOURCES_A_MINUTE:
            peer = OTHERS
        self._counts[peer] = self._counts.get(peer, 0) + 1

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
        lines = [Refusal(self._minute, _shown(peer), requests) for peer, requests in ranked[:kept]]
        self._lines_of_day += len(lines)
        if others:
            lines.append(Refusal(self._minute, OTHERS, others))
        self._counts = {}
        self.put_back(lines)


def _peer(source: str) -> str | bytes:
    """Return what counts as one source: an IPv4 address, or the /64 that one host has for itself, as bytes."""
    if ":" not in source:
        return source
    try:
        packed = socket.inet_pton(socket.AF_INET6, source.partition("%")[0])
    except (OSError, ValueError):
        return source
    if packed.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(MAPPED) :])
    return packed[:8]


def _shown(peer: str | bytes) -> str:
    return peer if isinstance(peer, str) else str(ipaddress.IPv6Network((peer + bytes(8), 64)))
