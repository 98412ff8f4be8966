"""Energy measured on this machine: the kernel's counters of its CPU packages, shared among the calls that run.

A thread reads the counters while calls run. A call's share is what the packages took while it ran, divided at
every moment by how many ran: the difference of one running sum between its end and its beginning. Between two
readings the power is taken as even; since the last one, as what it was before, until the next one corrects it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
INTERVAL_SECONDS = 0.1
JOULES_PER_KWH = 3_600_000
MICRO = 1e-6


class Counters(Protocol):
    """Where the energy is read."""

    def joules(self) -> float:
        """Return the energy taken since some moment. Raises OSError or ValueError."""


class PackageCounters:
    """The energy counters of the CPU packages (RAPL, Intel's and AMD's alike)."""

    def __init__(self, domains: list[Path]) -> None:
        """Take the packages' folders in powercap. Raises OSError, ValueError when one cannot be read."""
        self._domains = [_Domain(path) for path in domains]
        self._total = 0

    @classmethod
    def find(cls, root: Path = POWERCAP) -> PackageCounters | None:
        """Return this machine's counters; None when it has none that this process may read."""
        packages: dict[str, Path] = {}
        try:
            # The same package may come again through memory-mapped registers: those last, so not taken.
            for path in sorted(root.glob("*"), key=lambda path: ("mmio" in path.name, path.name)):
                name = path / "name"
                if name.is_file() and name.read_text().startswith("package"):
                    packages.setdefault(name.read_text().strip(), path)
            return cls(list(packages.values())) if packages else None
        except (OSError, ValueError) as error:
            log.info("the energy of calls is estimated: the counters cannot be read (%s)", error)
            return None

    def joules(self) -> float:
        """Return what all packages took since this object was made. Raises OSError, ValueError."""
        self._total += sum(domain.advance() for domain in self._domains)
        return self._total * MICRO


class _Domain:
    def __init__(self, path: Path) -> None:
        self._counter = path / "energy_uj"
        self._range = int((path / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())

    def advance(self) -> int:
        """Return the microjoules since the last time; a counter that is through begins at 0 again."""
        before, self._last = self._last, int(self._counter.read_text())
        difference = self._last - before
        return difference if difference >= 0 else max(0, difference + self._range)


class _Interval:
    """The time between two readings. ``watts`` is that of the interval before until the second reading."""

    __slots__ = ("spread", "sum", "watts")

    def __init__(self, total: float, watts: float | None) -> None:
        # Joules that a call would have at the interval's beginning, had it run from the service's start.
        self.sum = total
        self.watts = watts
        # Seconds since then, each divided by how many calls ran.
        self.spread = 0.0


class _Moment(NamedTuple):
    """A moment of the running sum; its value becomes exact when its interval ends."""

    interval: _Interval
    spread: float

    def joules(self) -> float:
        return self.interval.sum + (self.interval.watts or 0.0) * self.spread


class EnergyShare:
    """What one call took."""

    def __init__(self, meter: EnergyMeter, begin: _Moment) -> None:
        self._meter = meter
        self._begin = begin
        self._end: _Moment | None = None

    def kwh(self) -> float | None:
        """Return the energy so far, up to the call's end; None when it is not measured."""
        end = self._end or self._meter.moment()
        if end.interval.watts is None:
            return None
        return (end.joules() - self._begin.joules()) / JOULES_PER_KWH

    def end(self) -> None:
        """Note that the call no longer runs."""
        if self._end is None:
            self._end = self._meter.leave()


class EnergyMeter:
    """Shares the energy of this machine among the calls that run on it. Calls come and go on the event loop."""

    def __init__(
        self,
        counters: Counters | None = None,
        interval: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the counters, None to measure nothing, and how often (seconds) to read them."""
        self._counters = counters
        self._seconds = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._interval = _Interval(0.0, None)
        self._known_at = clock()
        # The reading that the interval began with (moment, joules), and whether a call ran since.
        self._reading: tuple[float, float] | None = None
        self._busy = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read the counters, if there are any, while calls run."""
        if self._counters is not None:
            self._thread = threading.Thread(
                target=self._watch, args=[self._counters], name="energy", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self) -> EnergyShare:
        """Count a call that runs on this machine from now on, until its share is ended."""
        with self._lock:
            begin = self._advance()
            self._running += 1
        self._wake.set()
        return EnergyShare(self, begin)

    def leave(self) -> _Moment:
        """Count one call less."""
        with self._lock:
            end = self._advance()
            self._running -= 1
            return end

    def moment(self) -> _Moment:
        """Return the present moment of the running sum."""
        with self._lock:
            return self._advance()

    def read(self, joules: float) -> bool:
        """Take a reading of the counters; return whether a call ran since the last one, or runs."""
        with self._lock:
            self._advance()
            busy, now = self._busy, self._known_at
            if self._reading is not None and busy and now > self._reading[0]:
                self._interval.watts = max(0.0, joules - self._reading[1]) / (now - self._reading[0])
            self._next_interval((now, joules))
            return busy or self._running > 0

    def _advance(self) -> _Moment:
        now = self._clock()
        seconds, self._known_at = now - self._known_at, now
        if self._running:
            self._interval.spread += seconds / self._running
            self._busy = True
        return _Moment(self._interval, self._interval.spread)

    def _next_interval(self, reading: tuple[float, float] | None) -> None:
        total = _Moment(self._interval, self._interval.spread).joules()
        self._interval = _Interval(total, self._interval.watts)
        self._reading = reading
        self._busy = False

    def _watch(self, counters: Counters) -> None:
        while not self._closing.is_set():
            # Cleared first: a call that begins from here on is seen by the reading, or wakes the next one.
            self._wake.clear()
            try:
                busy = self.read(counters.joules())
            except (OSError, ValueError) as error:
                log.warning("the energy of calls is estimated from now on: %s", error)
                with self._lock:
                    self._interval.watts = None
                return
            if busy:
                self._closing.wait(self._seconds)
            else:
                self._wake.wait()
                with self._lock:
                    # What the machine took while nothing ran is nobody's.
                    self._advance()
                    self._next_interval(None)
