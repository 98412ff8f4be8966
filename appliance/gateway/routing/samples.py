"""How fast a provider was of late."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

WINDOW_SECONDS = 120.0
# The latest of a busy provider's: choosing sorts them.
MOST_SAMPLES = 1024


class Sample(NamedTuple):
    """One request that succeeded at the time ``at``. Seconds; ``speed`` is tokens per second."""

    at: float
    ttft: float | None
    latency: float
    speed: float | None


class Samples:
    """The requests of the last 120 seconds."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)

    def add(self, sample: Sample) -> None:
        """Take a sample; they come in the order of their times."""
        self._samples.append(sample)

    def recent(self, now: float) -> int:
        """Forget what is older than the window, and return how many samples are left."""
        while self._samples and self._samples[0].at <= now - WINDOW_SECONDS:
            self._samples.popleft()
        return len(self._samples)

    def ttft(self, now: float) -> float | None:
        """Return the 95th percentile of the seconds to a first token, None without a sample."""
        self.recent(now)
        return percentile_95(sample.ttft for sample in self._samples if sample.ttft is not None)

    def latency(self, now: float) -> float | None:
        """Return the 95th percentile of the seconds that requests took, None without a sample."""
        self.recent(now)
        return percentile_95(sample.latency for sample in self._samples)

    def speed(self, now: float) -> float | None:
        """Return the median of the tokens per second, None without a sample."""
        self.recent(now)
        speeds = [sample.speed for sample in self._samples if sample.speed is not None]
        return statistics.median(speeds) if speeds else None


def percentile_95(values: Iterator[float]) -> float | None:
    """Return the value at place ceil(0.95 n) of the sorted values."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None
