"""Energy measured on this machine: the kernel's counters of its CPU packages, shared among the calls that run.

A thread reads the counters while calls run. A call's share is what the packages took while it ran, divided at
every moment by how many ran: the difference of one running sum between its end and its beginning. Since the
last reading the sum goes on at the power found then; the next reading makes up the difference.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

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


class EnergyShare:
    """What one call took."""

    def __init__(self, meter: EnergyMeter, begun_at: float) -> None:
        self._meter = meter
        self._begun_at = begun_at
        self._ended_at: float | None = None

    def kwh(self) -> float | None:
        """Return the energy so far, up to the call's end; None when it is not measured."""
        total = self._meter.per_call()
        if total is None:
            return None
        end = total if self._ended_at is None else self._ended_at
        return max(0.0, end - self._begun_at) / JOULES_PER_KWH

    def end(self) -> None:
        """Note that the call no longer runs."""
        if self._ended_at is None:
            self._ended_at = self._meter.leave()


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
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        # Joules that a call would have that ran from the beginning; and the moment it is known for.
        self._per_call = 0.0
        self._known_at = clock()
        # Watts of the last interval in which calls ran; None before there was any.
        self._power: float | None = None
        # The last reading (moment, joules), and since then: seconds with calls, joules shared out by power.
        self._reading: tuple[float, float] | None = None
        self._busy = 0.0
        self._assumed = 0.0
        # Joules that were measured and not shared out yet; below 0: too much was.
        self._due = 0.0
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
            self._advance()
            self._running += 1
            begun_at = self._per_call
        self._wake.set()
        return EnergyShare(self, begun_at)

    def leave(self) -> float:
        """Count one call less; return the running sum."""
        with self._lock:
            self._advance()
            self._running -= 1
            return self._per_call

    def per_call(self) -> float | None:
        """Return the running sum in joules, None when nothing was measured yet."""
        with self._lock:
            self._advance()
            return None if self._power is None else self._per_call

    def read(self, joules: float) -> bool:
        """Take a reading of the counters; return whether a call ran since the last one."""
        with self._lock:
            self._advance()
            now, before = self._known_at, self._reading
            was_busy = self._busy > 0
            if before is not None and was_busy and now > before[0]:
                taken = joules - before[1]
                self._power = taken / (now - before[0])
                # Of an interval in which calls ran for a part of the time, that part.
                self._due += self._power * self._busy - self._assumed
                if self._running and self._due > 0:
                    self._per_call += self._due / self._running
                    self._due = 0.0
            if not self._running:
                self._due = 0.0
            self._reading = (now, joules)
            self._busy = self._assumed = 0.0
            return was_busy or self._running > 0

    def _advance(self) -> None:
        now = self._clock()
        seconds, self._known_at = now - self._known_at, now
        if not self._running:
            return
        self._busy += seconds
        if self._power is not None:
            assumed = self._power * seconds
            self._assumed += assumed
            # What was shared out too much is made up for first.
            covered = min(assumed, max(0.0, -self._due))
            self._due += covered
            self._per_call += (assumed - covered) / self._running

    def _watch(self, counters: Counters) -> None:
        while not self._closing.is_set():
            # Cleared first: a call that begins from here on is seen by the reading, or wakes the next one.
            self._wake.clear()
            try:
                busy = self.read(counters.joules())
            except (OSError, ValueError) as error:
                log.warning("the energy of calls is estimated from now on: %s", error)
                with self._lock:
                    self._power = None
                return
            if busy:
                self._closing.wait(self._interval)
            else:
                self._wake.wait()
                with self._lock:
                    # What the machine took while nothing ran is nobody's.
                    self._reading = None
                    self._busy = self._assumed = 0.0
