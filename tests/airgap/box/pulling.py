"""How the plug is pulled: at which instants of a command, in which copy of the box, and who writes meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.airgap.box.appliance import Appliance
from tests.airgap.box.machine import Box
from tests.airgap.box.shell import BoxError, run

LOOK_EVERY_SECONDS = 0.002


@dataclass
class Writer:
    """Makes organizations one after the other; ``acknowledged`` are those that were answered with 201."""

    on: Appliance
    name: str
    acknowledged: set[str] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write until the block ends; what is refused or not answered was not acknowledged."""
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _write(self) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            name = f"{self.name} {number}"
            with contextlib.suppress(BoxError, ValueError):
                self.on.call("POST", "/v1/admin/organizations", {"name": name}, status=201)
                self.acknowledged.add(name)
            self._end.wait(0.05)


@dataclass(frozen=True)
class Work:
    """A command of the box in stretches: each begins when a file of its pattern (below the root) is there.

    ``stretches`` are their names and patterns; before the first is ``the start``.
    """

    command: str
    stretches: tuple[tuple[str, str], ...]

    def name(self, stretch: int) -> str:
        """Return the name of a stretch by its number; 0 is the start."""
        return self.stretches[stretch - 1][0] if stretch else "the start"

    def marks(self, root: Path) -> set[Path]:
        """Return the files that stand for a stretch in the box of ``root``: those of before say nothing."""
        return {path for _, pattern in self.stretches for path in root.glob(pattern)}

    def has_begun(self, stretch: int, root: Path, before: set[Path]) -> bool:
        """Tell whether a stretch has left a mark in the box of ``root`` that was not there ``before``."""
        return stretch == 0 or any(path not in before for path in root.glob(self.stretches[stretch - 1][1]))


@dataclass(frozen=True)
class Instant:
    """When the plug is pulled: ``seconds`` after a stretch of the work has begun."""

    stretch: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.stretch}+{self.seconds:.3f}"


def instants(begins: Sequence[float], whole: float, points: int) -> list[Instant]:
    """Spread ``points`` evenly over the stretches, and within each.

    ``begins`` are the seconds from the start at which the stretches after the first begin.
    """
    edges = [0.0, *begins, whole]
    found: list[Instant] = []
    for stretch, (begin, end) in enumerate(itertools.pairwise(edges)):
        share = points * (stretch + 1) // (len(edges) - 1) - len(found)
        # A little beyond the end: what was said to be done must stay done.
        span = (end - begin) * (1.1 if end == edges[-1] else 1)
        found += [Instant(stretch, span * (n + 0.5) / share) for n in range(share)]
    return found


def measure(on: Appliance, work: Work) -> tuple[list[float], float]:
    """Do the work undisturbed; return the seconds until each stretch after the first begins, and the whole.

    One that is too short to be seen begins with the next. Raises BoxError when the work fails.
    """
    before = work.marks(on.box.root)
    began = time.monotonic()
    process = on.box.start(work.command)
    seen: dict[int, float] = {}
    while process.poll() is None:
        for stretch in range(1, len(work.stretches) + 1):
            if stretch not in seen and work.has_begun(stretch, on.box.root, before):
                seen[stretch] = time.monotonic() - began
        time.sleep(LOOK_EVERY_SECONDS)
    whole = time.monotonic() - began
    if process.returncode:
        raise BoxError(f"undisturbed, it failed: {on.box.sh(work.command, check=False)}")
    begins = [whole]
    for stretch in range(len(work.stretches), 0, -1):
        begins.insert(0, min(seen.get(stretch, whole), begins[0]))
    return begins[:-1], whole


def pull_plug_during(on: Appliance, work: Work, instant: Instant) -> str:
    """Start the work and pull the plug; return where that was, in words."""
    before = work.marks(on.box.root)
    process = on.box.start(work.command)
    # A busy machine takes its time: the stretch is waited for, not guessed.
    while process.poll() is None and not work.has_begun(instant.stretch, on.box.root, before):
        time.sleep(LOOK_EVERY_SECONDS)
    time.sleep(instant.seconds)
    ended = "" if process.poll() is None else ", after its end"
    on.box.pull_plug()
    process.wait()
    return f"{instant.seconds:6.3f} s into {work.name(instant.stretch)}{ended}"


@contextlib.contextmanager
def booted(on: Appliance) -> Iterator[None]:
    """Run a block in a box that has booted and serves."""
    try:
        on.box.boot()
        on.wait_until_ready()
        yield
    finally:
        on.box.close()


@contextlib.contextmanager
def copy_of(on: Appliance, base: Path, folder: Path) -> Iterator[Appliance]:
    """Give the appliance in a writable layer over ``base``, which stays as it is; gone at the end."""
    parts = {name: folder / f"layer-{name}" for name in ("upper", "work", "root")}
    for path in parts.values():
        path.mkdir()
    options = f"lowerdir={base},upperdir={parts['upper']},workdir={parts['work']},redirect_dir=on"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(parts["root"]))
    try:
        yield replace(on, box=Box(parts["root"], on.box.namespace, on.box.console))
    finally:
        run("umount", str(parts["root"]))
        subprocess.run(["rm", "-rf", *map(str, parts.values())], check=True)
