"""What the proof needs of a machine, and what is missing here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.airgap.box.goods import TREE
from tests.airgap.box.shell import BoxError, run

PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "curl": "curl",
    "zstd": "zstd",
}
FREE_BYTES = 12 << 30


def missing(folder: Path) -> list[str]:
    """Return in words what this machine lacks for a box in ``folder``; empty when the proof can run."""
    if os.geteuid() != 0:
        return ["root is needed, to make namespaces and boot a container"]
    found = [
        f"{name} is not installed (Debian: apt install {package})"
        for name, package in PROGRAMS.items()
        if shutil.which(name) is None
    ]
    if not any("cgroup2" in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        found.append("control groups v2 are not mounted")
    if shutil.disk_usage(folder).free < FREE_BYTES:
        found.append(f"{folder} has less than {FREE_BYTES >> 30} GiB free")
    if not found:
        found += _kernel()
    if not (TREE / "appliance").is_file():
        found.append("there is no frozen tree in dist/appliance: make bundle")
    return found


def _kernel() -> list[str]:
    """Try what the kernel, or the container that this runs in, may refuse."""
    name = f"box-try-{os.getpid()}"
    try:
        run("ip", "netns", "add", name)
        try:
            run("ip", "-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1")
        finally:
            run("ip", "netns", "del", name, check=False)
    except BoxError as error:
        return [f"network namespaces and veth links cannot be made here: {error}"]
    return []
