"""Run as a program: installs packs and is killed meanwhile, for ``test_crash.py``.

``steps STORE ONE TWO [renames]`` forks a child for every step of an installation, which dies by
SIGKILL right before that step, and checks the store after each; prints how many steps there were.
``forever STORE ONE TWO [renames]`` installs the two in turn and prints a line after each.
``renames`` does without the atomic swap of two names.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from pathlib import Path

from appliance import disk
from appliance.packs.store import PackStore
from tests.killing import announce_fsync, die_before
from tests.packs.sample import leftovers, snapshot


def announce_silent_steps(*, swappable: bool) -> None:
    """Make audit events of the steps that have none."""
    announce_fsync()
    exchange = disk.exchange

    def audited_exchange(one: Path, other: Path) -> None:
        if not swappable:
            raise OSError(errno.EINVAL, "Invalid argument")
        sys.audit("exchange")
        exchange(one, other)

    disk.exchange = audited_exchange


def steps(store: PackStore, sources: list[Path]) -> int:
    """Die at every step of an installation over another pack; return how many there are."""
    packs = []
    for source in sources:
        store.install(source)
        packs.append(snapshot(store.path))
    for step in itertools.count():
        target = packs.index(snapshot(store.path)) ^ 1
        child = os.fork()
        if child == 0:
            die_before(step)
            store.install(sources[target])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        store.sweep()
        assert leftovers(store.path) == [], (step, leftovers(store.path))
        assert snapshot(store.path) in packs, (step, sorted(snapshot(store.path)))
        assert store.verify("sample")
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            assert snapshot(store.path) == packs[target]
            return step
    raise AssertionError


def main(mode: str, directory: str, one: str, two: str, *options: str) -> None:
    """Do what the module says."""
    announce_silent_steps(swappable="renames" not in options)
    store = PackStore(Path(directory))
    sources = [Path(one), Path(two)]
    if mode == "steps":
        print(steps(store, sources))
    for source in itertools.cycle(sources) if mode == "forever" else ():
        store.install(source)
        print(source, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
