"""Pulling the plug: SIGKILL to the whole container at many instants of an upgrade and of a backup.

Afterwards the box must boot, serve one of the two releases with everything it ever acknowledged, and take
writes; and of backups there are only whole ones, the older ones among them. A writer writes all the time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.airgap.box.appliance import JOURNAL, Appliance
from tests.airgap.box.goods import FIRST, SECOND, Goods
from tests.airgap.box.machine import Box
from tests.airgap.box.network import Networks
from tests.airgap.box.shell import BoxError, run

BACKUPS = "/var/lib/appliance/backups"
CHAT = {"model": "smollm2-135m-instruct", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}


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


def pull_plugs(box: Box, nets: Networks, goods: Goods, folder: Path, points: int) -> None:
    """Install once, then pull the plug ``points`` times in an upgrade and as often in a backup."""
    on = Appliance(box, nets, folder)
    on.install(goods)
    on.set_up()
    on.wait_until_ready()
    on.mark("at first")
    bundle = on.carry_bundle(goods.second)
    box.pull_plug()
    base = box.root
    print("installed; every run below starts from this box", flush=True)
    _upgrades(on, base, folder, f"appliance upgrade {bundle}", points)
    with copy_of(base, folder) as root:
        _backups(replace(on, box=replace_root(box, root)), points)


def _upgrades(on: Appliance, base: Path, folder: Path, command: str, points: int) -> None:
    with copy_of(base, folder) as root:
        switch, whole = _measure(replace(on, box=replace_root(on.box, root)), command)
    print(f"an upgrade takes {whole:.1f} s; from {switch:.1f} s on it switches", flush=True)
    for number, instant in enumerate(instants(switch, whole, points), 1):
        with copy_of(base, folder) as root:
            said = _one_upgrade(replace(on, box=replace_root(on.box, root)), command, instant)
        print(f"upgrade {number:2}/{points}, {instant}: {said}", flush=True)


@dataclass(frozen=True)
class Instant:
    """When the plug is pulled: ``seconds`` after the beginning, or after the switch has begun."""

    seconds: float
    of_switch: bool

    def __str__(self) -> str:
        return f"{self.seconds:5.1f} s {'into the switch' if self.of_switch else 'from the start'}"


def instants(switch: float, whole: float, points: int) -> list[Instant]:
    """Return when to pull the plug: half of the points before the switch begins, half from there to the end."""
    early = points // 2
    late = points - early
    # A little beyond the end: what was said to be done must stay done.
    span = (whole - switch) * 1.1
    return [Instant(switch * (n + 0.5) / early, of_switch=False) for n in range(early)] + [
        Instant(span * (n + 0.5) / late, of_switch=True) for n in range(late)
    ]


def _measure(on: Appliance, command: str) -> tuple[float, float]:
    """Return the seconds of an upgrade that nobody disturbs: until the switch begins, and whole."""
    journal = on.box.root / JOURNAL
    with booted(on):
        began = time.monotonic()
        process = on.box.start(command)
        switch = 0.0
        while process.poll() is None:
            if not switch and journal.exists():
                switch = time.monotonic() - began
            time.sleep(0.05)
        whole = time.monotonic() - began
        if process.returncode or on.release() != SECOND:
            raise BoxError(f"the undisturbed upgrade failed: {on.appliance(command[10:], check=False)}")
    return switch, whole


def _one_upgrade(on: Appliance, command: str, instant: Instant) -> str:
    writer = Writer(on, f"upgrade {instant}")
    journal = on.box.root / JOURNAL
    with booted(on):
        with writer.writing():
            process = on.box.start(command)
            # A busy machine takes its time: the switch is waited for, not guessed.
            while instant.of_switch and not journal.exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(instant.seconds)
            phase = _phase(journal)
            on.box.pull_plug()
            process.wait()
        boot = on.box.boot()
        on.wait_until_ready()
        release = _require_whole(on, writer)
    kept = f"{len(writer.acknowledged)} writes kept"
    return f"pulled ({phase}); booted and ready in {boot:.1f} s, release {release}, {kept}"


def _backups(on: Appliance, points: int) -> None:
    with booted(on):
        on.appliance("backup create")
        began = time.monotonic()
        on.appliance("backup create")
        whole = time.monotonic() - began
        print(f"a backup takes {whole:.2f} s", flush=True)
        before = _whole_backups(on)
        for number in range(1, points + 1):
            instant = whole * 1.1 * (number - 0.5) / points
            writer = Writer(on, f"backup {number}")
            with writer.writing():
                process = on.box.start("appliance backup create")
                time.sleep(instant)
                on.box.pull_plug()
                process.wait()
            on.box.boot()
            on.wait_until_ready()
            after = _whole_backups(on)
            # The rule of days and weeks may remove one, but only after a newer one is whole.
            if len(after) < min(len(before), 3) or max(before) > max(after):
                raise BoxError(f"backups are gone: {sorted(before - after)}")
            _require_whole(on, writer)
            made, before = "a new one" if after - before else "none made", after
            print(
                f"backup {number:2}/{points}, {instant:5.2f} s: {made}, {len(after)} listed and whole",
                flush=True,
            )


def _whole_backups(on: Appliance) -> set[str]:
    """Return the names of the listed backups; raises BoxError when one of them is not whole."""
    listed = json.loads(on.appliance("backup list --json").stdout)["backups"]
    names = {item["name"] for item in listed}
    for name in names:
        on.appliance(f"backup verify {BACKUPS}/{name}")
    return names


def _require_whole(on: Appliance, writer: Writer) -> int:
    """Raise BoxError unless the box serves, has everything acknowledged, and takes writes; returns the release."""
    release = on.release()
    if release not in (FIRST, SECOND):
        raise BoxError(f"the box runs release {release}")
    on.mark(f"{writer.name}, afterwards")
    lost = {"at first", *writer.acknowledged} - _names(on)
    if lost:
        raise BoxError(f"acknowledged, but gone: {sorted(lost)}")
    on.call("POST", "/v1/chat/completions", CHAT)
    on.appliance("verify")
    return release


def _names(on: Appliance) -> set[str]:
    names: set[str] = set()
    while True:
        page = on.call("GET", f"/v1/admin/organizations?limit=100&offset={len(names)}")["data"]
        if not page:
            return names
        names |= {item["name"] for item in page}


def _phase(journal: Path) -> str:
    try:
        return str(json.loads(journal.read_text())["phase"])
    except (OSError, ValueError):
        return "before the switch"


@contextlib.contextmanager
def booted(on: Appliance) -> Iterator[None]:
    """Run a block in a box that has booted and serves."""
    try:
        on.box.boot()
        on.wait_until_ready()
        yield
    finally:
        on.box.close()


def replace_root(box: Box, root: Path) -> Box:
    """Return a box like ``box`` over another root."""
    return Box(root, box.namespace, box.console)


@contextlib.contextmanager
def copy_of(base: Path, folder: Path) -> Iterator[Path]:
    """Lay a writable layer over ``base``, which stays as it is; gone at the end."""
    parts = {name: folder / f"layer-{name}" for name in ("upper", "work", "root")}
    for path in parts.values():
        path.mkdir()
    options = f"lowerdir={base},upperdir={parts['upper']},workdir={parts['work']},redirect_dir=on"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(parts["root"]))
    try:
        yield parts["root"]
    finally:
        run("umount", str(parts["root"]))
        subprocess.run(["rm", "-rf", *map(str, parts.values())], check=True)
