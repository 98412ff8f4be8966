"""The time as the stores keep it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the wall clock in UTC milliseconds."""
    return time.time_ns() // 1_000_000
