"""Progress and cancellation of long work on packs."""

from __future__ import annotations

from collections.abc import Callable

from appliance.packs.errors import PackCancelledError

# (bytes done, bytes in all)
Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


class Meter:
    """Counts bytes of one piece of work, reports them, and stops the work when it was cancelled."""

    def __init__(self, progress: Progress | None = None, cancelled: Cancelled | None = None) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self.done = 0
        self.total = 0

    def expect(self, total: int) -> None:
        """Say how many bytes there will be."""
        self.total = total
        self.advance(0)

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes. Raises PackCancelledError when the caller asked to stop."""
        self.check()
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self.total)

    def report(self, done: int, total: int) -> None:
        """Report work that is counted elsewhere. Raises PackCancelledError when the caller asked to stop."""
        self.check()
        if self._progress is not None:
            self._progress(done, total)

    def check(self) -> None:
        """Raise PackCancelledError when the caller asked to stop."""
        if self._cancelled is not None and self._cancelled():
            raise PackCancelledError("cancelled; nothing was changed")
