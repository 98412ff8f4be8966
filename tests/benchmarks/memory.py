"""How much memory an engine holds or held at most: the resident set of a process and of those it started."""

from __future__ import annotations

import re
from pathlib import Path

MEGABYTE = 1e6


def peak_memory(pid: int) -> float:
    """Return the sum of the peak resident sizes (MB) of process ``pid`` and its living descendants.

    Shared pages count once for each process, so for several processes it is an upper bound.
    """
    return _sum("VmHWM", pid)


def resident_memory(pid: int) -> float:
    """Return the sum of what is resident now (MB), counted as ``peak_memory`` counts."""
    return _sum("VmRSS", pid)


def _sum(field: str, pid: int) -> float:
    return sum(_bytes(field, process) for process in [pid, *descendants(pid)]) / MEGABYTE


def _bytes(field: str, pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def descendants(pid: int) -> list[int]:
    """Return the living processes that ``pid`` and those below it started."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it ended while we looked
            continue
        # The command's name stands in brackets and may itself hold any character.
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found.extend(child for child, its_parent in parents.items() if its_parent == parent)
    return found[1:]
