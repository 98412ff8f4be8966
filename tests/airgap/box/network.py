"""The networks around the box: a LAN with one other machine, a stranger, and a wire to nowhere that counts.

The box has a namespace of its own that outlives its boots, so the counters run from the first instant of the
first boot to the end. Its default route and its resolver lie behind ``uplink``, where nobody answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.airgap.box.shell import BoxError, run

BOX_LAN = "192.168.77.10"
MATE = "192.168.77.20"
BOX_STRANGE = "203.0.113.1"  # TEST-NET-3: no address of a LAN
STRANGER = "203.0.113.66"
UPLINK = "198.51.100.2"  # TEST-NET-2: nobody's addresses
GATEWAY = "198.51.100.1"
RESOLVER = "198.51.100.53"
OUTSIDE = "192.0.2.80"  # TEST-NET-1: somewhere far behind the gateway
UPLINK6, GATEWAY6 = "2001:db8:1::2", "2001:db8:1::1"
OUTSIDE6 = "2001:db8:99::80"


@dataclass
class Networks:
    """The namespaces and what the wire has seen."""

    box: str
    mate: str
    stranger: str
    nowhere: str
    notes: Path
    sort: str = "dummy"
    watcher: subprocess.Popen[bytes] | None = None
    base: int = 0
    base_notes: int = 0

    def packets(self) -> int:
        """Return how many packets the box has sent towards the outside, dropped ones included."""
        shown = json.loads(run("ip", "-n", self.box, "-j", "-s", "link", "show", "dev", "uplink").stdout)[0][
            "stats64"
        ]["tx"]
        return sum(int(shown[name]) for name in ("packets", "dropped", "errors", "carrier_errors"))

    def reset(self) -> None:
        """Count from here."""
        self.base = self.packets()
        self.base_notes = len(self.all_notes())

    def sent(self) -> int:
        """Return how many packets left towards the outside since the last ``reset``."""
        return self.packets() - self.base

    def all_notes(self) -> list[str]:
        """Return what the box began, by the watcher on all its interfaces: ``INTERFACE PROTOCOL TO``."""
        return self.notes.read_text().splitlines()

    def begun(self) -> list[str]:
        """Return what the box itself began since the last ``reset``, on the LAN too, each sort once."""
        return sorted(set(self.all_notes()[self.base_notes :]))

    def inside(self, namespace: str, *command: str, timeout: float = 600, check: bool = True) -> str:
        """Run a program of this machine in ``namespace``; returns what it printed, errors included."""
        done = run("ip", "netns", "exec", namespace, *command, timeout=timeout, check=check)
        return done.stdout + done.stderr


@contextlib.contextmanager
def networks(folder: Path) -> Iterator[Networks]:
    """Make the namespaces and links; all are gone at the end, whatever happened."""
    names = [f"box-{part}-{os.getpid()}" for part in ("self", "mate", "stranger", "nowhere")]
    box, mate, stranger, nowhere = names
    nets = Networks(box, mate, stranger, nowhere, folder / "begun.txt")
    nets.notes.touch()
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        _link(nets.box, "lan0", f"{BOX_LAN}/24", nets.mate, f"{MATE}/24")
        _link(nets.box, "far0", f"{BOX_STRANGE}/24", nets.stranger, f"{STRANGER}/24")
        nets.sort = _uplink(nets)
        nets.watcher = _watch(nets)
        yield nets
    finally:
        if nets.watcher is not None:
            nets.watcher.kill()
            nets.watcher.wait()
        for name in names:
            run("ip", "netns", "del", name, check=False)


def _link(one: str, name: str, address: str, other: str, other_address: str) -> None:
    """Lay a cable between two namespaces; its end in both is called ``name``."""
    run("ip", "-n", one, "link", "add", name, "type", "veth", "peer", "name", name, "netns", other)
    for namespace, own in ((one, address), (other, other_address)):
        # Nothing but what a program sends: no router solicitations, no multicast of the kernel's own.
        run("ip", "-n", namespace, "link", "set", name, "addrgenmode", "none")
        run("ip", "-n", namespace, "address", "add", own, "dev", name)
        run("ip", "-n", namespace, "link", "set", name, "up")


def _uplink(nets: Networks) -> str:
    """Make the interface with the default route; returns its kind.

    A dummy interface where the kernel has them; else a cable whose far end nobody listens at. Both without
    ARP: a packet to the gateway leaves at once, and is counted, though there is no gateway.
    """
    kind = "dummy"
    if run("ip", "-n", nets.box, "link", "add", "uplink", "type", "dummy", check=False).returncode:
        kind = "veth"
        run(
            "ip",
            "-n",
            nets.box,
            "link",
            "add",
            "uplink",
            "type",
            "veth",
            "peer",
            "uplink",
            "netns",
            nets.nowhere,
        )
        run("ip", "-n", nets.nowhere, "link", "set", "uplink", "addrgenmode", "none", "arp", "off", "up")
    run("ip", "-n", nets.box, "link", "set", "uplink", "addrgenmode", "none", "arp", "off", "up")
    run("ip", "-n", nets.box, "address", "add", f"{UPLINK}/24", "dev", "uplink")
    run("ip", "-n", nets.box, "address", "add", f"{UPLINK6}/64", "dev", "uplink", "nodad")
    run("ip", "-n", nets.box, "route", "add", "default", "via", GATEWAY, "dev", "uplink")
    run("ip", "-n", nets.box, "-6", "route", "add", "default", "via", GATEWAY6, "dev", "uplink")
    return kind


def _watch(nets: Networks) -> subprocess.Popen[bytes]:
    """Start the watcher; returns when it sees packets."""
    command = [sys.executable, str(Path(__file__).with_name("watcher.py")), str(nets.notes)]
    watcher = subprocess.Popen(
        ["ip", "netns", "exec", nets.box, *command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert watcher.stdout is not None
    if watcher.stdout.readline() != b"watching\n":
        watcher.kill()
        raise BoxError("the watcher over the box's interfaces did not start")
    return watcher
