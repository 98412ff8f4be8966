"""Requests and prompt tokens per minute and per day, counted for each user and router in sliding windows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import msgspec

from appliance.gateway.errors import LimitExceededError
from appliance.gateway.limits.clock import SteadyClock
from appliance.gateway.limits.window import Window
from appliance.gateway.routing.records import Limits, LimitType

SECOND = 1
MINUTE = 60
MINUTE_BUCKETS = 60
DAY_BUCKETS = 1440
# After so many seconds without a hit nothing of a user and router is in any window.
FORGOTTEN_SECONDS = (DAY_BUCKETS + 1) * MINUTE

Unit = Literal["requests", "tokens"]

_UNITS: dict[Unit, str] = {"requests": "requests", "tokens": "input tokens"}


class LimitHit(msgspec.Struct, frozen=True):
    """What a user asked of a router in one minute (since the epoch), as the store keeps it."""

    user_id: int
    router_id: int
    minute: int
    requests: int
    tokens: int


class _Counter:
    """What one user asked of one router."""

    __slots__ = ("day", "last", "minute")

    def __init__(self) -> None:
        self.minute = Window(MINUTE_BUCKETS, SECOND)
        self.day = Window(DAY_BUCKETS, MINUTE)
        self.last = 0.0

    def move(self, now: float) -> None:
        self.minute.move(now)
        self.day.move(now)


class Limiter:
    """The counters of a running service. Used on the event loop only.

    Every request counts, also where nothing limits it: a limit that is set later finds what was asked before.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """Take the time from ``clock`` (seconds since the epoch, never going back)."""
        self._clock = SteadyClock() if clock is None else clock
        # Those that were used last at the end.
        self._counters: OrderedDict[tuple[int, int], _Counter] = OrderedDict()
        self._changed: dict[tuple[int, int, int], tuple[int, int]] = {}

    @property
    def minute(self) -> int:
        """The present minute since the epoch."""
        return int(self._clock() // MINUTE)

    def load(self, hits: list[LimitHit]) -> None:
        """Take up what was counted before the last start.

        Minutes in the future (the clock was set back meanwhile) count as now, and the last minutes of the day
        as late in the window of a minute as they may have been.
        """
        now = self._clock()
        for hit in sorted(hits, key=lambda hit: hit.minute):
            end = min(now, (hit.minute + 1) * MINUTE - 1)
            if end + FORGOTTEN_SECONDS <= now:
                continue
            counter = self._used(hit.user_id, hit.router_id, end)
            counter.day.add(end, hit.requests, hit.tokens)
            counter.minute.add(end, hit.requests, hit.tokens)
            counter.move(now)

    def admit_request(self, user_id: int, router_id: int, limits: Limits) -> None:
        """Count a request. Raises LimitExceededError, and counts nothing, when a limit is used up."""
        now = self._clock()
        counter = self._counters.get((user_id, router_id))
        if counter is not None:
            counter.move(now)
            _check(counter.minute, "requests", "rpm", limits.rpm, 1, now)
            _check(counter.day, "requests", "rpd", limits.rpd, 1, now)
        self._count(user_id, router_id, now, 1, 0)

    def admit_tokens(self, user_id: int, router_id: int, limits: Limits, tokens: int) -> None:
        """Count a prompt's tokens. Raises LimitExceededError, and counts nothing, when they are too many."""
        now = self._clock()
        counter = self._counters.get((user_id, router_id)) or _Counter()
        counter.move(now)
        _check(counter.minute, "tokens", "tpm", limits.tpm, tokens, now)
        _check(counter.day, "tokens", "tpd", limits.tpd, tokens, now)
        self._count(user_id, router_id, now, 0, tokens)

    def headers(self, user_id: int, router_id: int, limits: Limits) -> dict[str, str]:
        """Return OpenAI's x-ratelimit headers for the windows nearest exhaustion."""
        now = self._clock()
        counter = self._counters.get((user_id, router_id)) or _Counter()
        counter.move(now)
        found: dict[str, str] = {}
        units: tuple[tuple[Unit, int | None, int | None], ...] = (
            ("requests", limits.rpm, limits.rpd),
            ("tokens", limits.tpm, limits.tpd),
        )
        for unit, per_minute, per_day in units:
            windows = [
                _Standing.of(window, unit, limit, now)
                for window, limit in ((counter.minute, per_minute), (counter.day, per_day))
                if limit is not None
            ]
            if not windows:
                continue
            nearest = min(windows, key=lambda each: (each.share, -each.reset, each.limit))
            found[f"x-ratelimit-limit-{unit}"] = str(nearest.limit)
            found[f"x-ratelimit-remaining-{unit}"] = str(nearest.remaining)
            found[f"x-ratelimit-reset-{unit}"] = duration(nearest.reset)
        return found

    def changed(self) -> list[LimitHit]:
        """Return the sums of the minutes that changed since the last call, for the store."""
        hits = [LimitHit(*key, *sums) for key, sums in self._changed.items()]
        self._changed.clear()
        return hits

    def _count(self, user_id: int, router_id: int, now: float, requests: int, tokens: int) -> None:
        counter = self._used(user_id, router_id, now)
        counter.minute.add(now, requests, tokens)
        minute, *sums = counter.day.add(now, requests, tokens)
        self._changed[user_id, router_id, minute] = (sums[0], sums[1])
        # Each call drops what it can: as many are never added as dropped, so the cost is spread.
        while self._counters:
            key, oldest = next(iter(self._counters.items()))
            if oldest.last + FORGOTTEN_SECONDS > now:
                break
            del self._counters[key]

    def _used(self, user_id: int, router_id: int, now: float) -> _Counter:
        key = user_id, router_id
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter()
        else:
            self._counters.move_to_end(key)
        counter.last = now
        counter.move(now)
        return counter


class _Standing(msgspec.Struct, frozen=True):
    """How much of a limit is left; ``reset`` is seconds until all of it is."""

    limit: int
    remaining: int
    reset: float

    @classmethod
    def of(cls, window: Window, unit: Unit, limit: int, now: float) -> _Standing:
        used = window.requests if unit == "requests" else window.tokens
        return cls(limit, max(0, limit - used), window.seconds_to_empty(now) if used else 0.0)

    @property
    def share(self) -> float:
        return self.remaining / self.limit if self.limit else 0.0


def _check(window: Window, unit: Unit, kind: LimitType, limit: int | None, wanted: int, now: float) -> None:
    if limit is None:
        return
    used = window.requests if unit == "requests" else window.tokens
    excess = used + wanted - limit
    if excess <= 0:
        return
    if wanted > limit:
        seconds = window.length
    elif unit == "requests":
        seconds = window.seconds_until(now, excess, 0)
    else:
        seconds = window.seconds_until(now, 0, excess)
    period = "minute" if kind.endswith("m") else "day"
    raise LimitExceededError(
        f"{limit} {_UNITS[unit]} per {period} exceeded (remaining: {max(0, limit - used)}).",
        kind=kind,
        retry_after=seconds,
    )


def duration(seconds: float) -> str:
    """Write a time as OpenAI's headers do: "1ms", "1s", "6m0s", "23h0m5s"; never less than it is."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds <= 0.999 else "1s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
