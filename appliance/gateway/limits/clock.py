"""A clock that no change of the machine's time moves."""

from __future__ import annotations

import time


class SteadyClock:
    """The wall clock as it was at the start, moved on by the monotonic one."""

    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the time in seconds since the epoch; it never goes back."""
        return self._start + time.monotonic()
