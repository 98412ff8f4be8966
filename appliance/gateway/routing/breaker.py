"""When an upstream server fails again and again, others are asked first, and it is tried now and then."""

from __future__ import annotations

# Failures in a row: one may be a request that no server could answer.
FAILURES_TO_OPEN = 3
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0


class Breaker:
    """Closed while a server answers. Open after failures; after a pause, which grows, one request tries it."""

    __slots__ = ("_failures", "_pause", "_retry_at", "_trial")

    def __init__(self) -> None:
        self._failures = 0
        self._pause = 0.0
        # None = closed.
        self._retry_at: float | None = None
        self._trial = False

    @property
    def closed(self) -> bool:
        """Whether nothing is wrong."""
        return self._retry_at is None

    def due(self, now: float) -> bool:
        """Tell whether it is open and may be tried: its pause is over, and nobody tries it yet."""
        return self._retry_at is not None and now >= self._retry_at and not self._trial

    def try_now(self) -> None:
        """Note that a request tries it."""
        self._trial = True

    def tried(self) -> None:
        """Note that a request ended, however: another may try."""
        self._trial = False

    def succeeded(self) -> None:
        """Close it."""
        self._failures, self._pause, self._retry_at, self._trial = 0, 0.0, None, False

    def reached(self, now: float) -> None:
        """Note that the server can be reached: no proof that it works, but worth a try."""
        self._failures = 0
        if self._retry_at is not None:
            self._retry_at = min(self._retry_at, now)

    def failed(self, now: float) -> None:
        """Count a failure; the third in a row opens it."""
        self._failures += 1
        if self._retry_at is None and self._failures < FAILURES_TO_OPEN:
            return
        if self._retry_at is not None and now < self._retry_at:
            return  # requests that were on their way say nothing new
        self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._retry_at = now + self._pause
