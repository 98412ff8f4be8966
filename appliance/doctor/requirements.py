"""What a release says that it needs, held against this machine before it is taken into use."""

from __future__ import annotations

from pathlib import Path

from appliance.bundles.manifest import Requirements
from appliance.doctor.findings import gib
from appliance.doctor.machine import cpu_flags, disk_free, glibc_version, memory, memory_limit


def unmet(requires: Requirements, directory: Path) -> list[str]:
    """Return in words what this machine lacks; ``directory`` is where the release would lie.

    What cannot be seen here is not held against the machine: the smoke test tries it.
    """
    lacking = []
    flags = cpu_flags()
    missing = [] if flags is None else [flag for flag in requires.cpu if flag not in flags]
    if missing:
        lacking.append(f"a processor with {', '.join(missing)}")
    found = glibc_version()
    wanted = tuple(int(part) for part in requires.glibc.split(".")) if requires.glibc else ()
    if found is not None and found < wanted:
        lacking.append(f"glibc {requires.glibc} (this system has {'.'.join(map(str, found))})")
    sizes = [size for size in (memory()[0], memory_limit()) if size is not None]
    # A machine sold with so much memory shows a little less.
    if sizes and min(sizes) < requires.memory_bytes * 9 // 10:
        lacking.append(f"{gib(requires.memory_bytes)} of memory (there are {gib(min(sizes))})")
    free = disk_free(directory)
    if free is not None and free < requires.disk_bytes:
        lacking.append(f"{gib(requires.disk_bytes)} free on the disk of {directory} (there are {gib(free)})")
    return lacking
