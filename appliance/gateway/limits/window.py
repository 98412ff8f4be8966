"""A sliding window: sums over the last so many buckets of time, those without a hit taking no room."""

from __future__ import annotations

import math
from array import array

# A bucket is three numbers in one array: its index, requests, tokens.
_WIDTH = 3
# Room of dropped buckets that is left before the rest is moved to the front.
_SLACK = 64 * _WIDTH


class Window:
    """Requests and tokens in buckets of ``seconds``; a hit counts while any part of its bucket is in the window.

    So every stretch of ``buckets`` times ``seconds`` is counted whole, and a hit is let go of at most one
    bucket late, never early. Times are seconds since the epoch, and must not go back.
    """

    __slots__ = ("_array", "_buckets", "_first", "_seconds", "requests", "tokens")

    def __init__(self, buckets: int, seconds: int) -> None:
        self.requests = 0
        self.tokens = 0
        self._buckets = buckets
        self._seconds = seconds
        self._array = array("q")
        self._first = 0

    @property
    def length(self) -> int:
        """The window's length in seconds."""
        return self._buckets * self._seconds

    def move(self, now: float) -> None:
        """Let go of what is out of the window."""
        oldest = int(now // self._seconds) - self._buckets
        entries, first = self._array, self._first
        while first < len(entries) and entries[first] < oldest:
            self.requests -= entries[first + 1]
            self.tokens -= entries[first + 2]
            first += _WIDTH
        if first >= _SLACK and first * 2 >= len(entries):
            del entries[:first]
            first = 0
        self._first = first

    def add(self, time: float, requests: int, tokens: int) -> tuple[int, int, int]:
        """Count a hit, and return its bucket: its index, and the requests and tokens in it."""
        index = int(time // self._seconds)
        entries = self._array
        if self._first < len(entries) and entries[-_WIDTH] >= index:
            entries[-2] += requests
            entries[-1] += tokens
        else:
            entries.extend((index, requests, tokens))
        self.requests += requests
        self.tokens += tokens
        return entries[-_WIDTH], entries[-2], entries[-1]

    def seconds_until(self, now: float, requests: int, tokens: int) -> int:
        """Return whole seconds until so many requests and tokens more than now have left the window."""
        entries, place = self._array, self._first
        while place < len(entries):
            requests -= entries[place + 1]
            tokens -= entries[place + 2]
            if requests <= 0 and tokens <= 0:
                return max(1, math.ceil(self._end(entries[place]) - now))
            place += _WIDTH
        return self.length

    def seconds_to_empty(self, now: float) -> float:
        """Return the seconds until the window has nothing in it, unless something is added."""
        if self._first >= len(self._array):
            return 0.0
        return self._end(self._array[-_WIDTH]) - now

    def _end(self, index: int) -> float:
        """Return when a bucket leaves the window."""
        return float((index + self._buckets + 1) * self._seconds)
