"""The box: Debian's own systemd as process 1 of a container, booted, asked, rebooted, and its plug pulled."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.airgap.box.shell import BoxError, Output, run

BOOT_SECONDS = 120
INSIDE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Box:
    """One root folder that boots; ``console`` is the file with what its console showed."""

    root: Path
    namespace: str
    console: Path
    name: str = field(default_factory=lambda: f"appliance-box-{os.getpid()}")
    _nspawn: subprocess.Popen[bytes] | None = None
    _leader: int = 0

    def boot(self) -> float:
        """Switch the box on; returns the seconds until systemd says it has started everything."""
        self._enter_group()
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    "systemd-nspawn",
                    *("-D", str(self.root), "-M", self.name, "--hostname=box", "-b"),
                    # A private network, but one that outlives the boots: --private-network makes one for each.
                    f"--network-namespace-path=/run/netns/{self.namespace}",
                    # The IP filter of systemd units is a BPF program, which nspawn refuses unless told.
                    "--system-call-filter=bpf",
                    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
                    *("--register=no", "--keep-unit", "--console=read-only"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environment,
                preexec_fn=self._join_group,  # noqa: PLW1509 - no threads here
            )
        return self._wait_for_boot()

    def _wait_for_boot(self) -> float:
        began = time.monotonic()
        state = ""
        while time.monotonic() - began < BOOT_SECONDS:
            time.sleep(0.3)
            if self._nspawn is None or self._nspawn.poll() is not None:
                raise BoxError(f"the container ended:\n{self.console_text()[-3000:]}")
            self._leader = self._find_leader()
            if self._leader:
                state = self.sh("systemctl is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return time.monotonic() - began
        raise BoxError(f"no boot after {BOOT_SECONDS} s ({state}):\n{self.console_text()[-3000:]}")

    def _find_leader(self) -> int:
        """Return the process id, outside, of the container's process 1; 0 while there is none."""
        assert self._nspawn is not None
        try:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            for child in children:
                status = Path(f"/proc/{child}/status").read_text()
                if re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE) and "Name:\tsystemd\n" in status:
                    return int(child)
        except OSError:
            pass
        return 0

    def command(self, script: str) -> list[str]:
        """Return the command of this machine that runs ``script`` in the box, as root, with the box's shell."""
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        return [*enter, "/usr/bin/env", "-i", f"PATH={INSIDE_PATH}", "HOME=/root", "/bin/sh", "-c", script]

    def sh(self, script: str, *, timeout: float = 300, check: bool = True) -> Output:
        """Run ``script`` in the box; raises BoxError with its output when it fails and ``check`` is set."""
        return run(*self.command(script), timeout=timeout, check=check)

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Start ``script`` in the box and return at once."""
        return subprocess.Popen(
            self.command(script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def reboot(self) -> float:
        """Reboot as an operator does; returns the seconds until everything has started again."""
        self.sh("systemctl reboot", check=False)
        deadline = time.monotonic() + BOOT_SECONDS
        while Path(f"/proc/{self._leader}").exists():
            if time.monotonic() > deadline:
                raise BoxError("the box does not go down to reboot")
            time.sleep(0.1)
        # Everything in it has ended. The container's supervisor does not always start it again by itself where
        # it did not make the network namespace, so it is switched on as after a power cut.
        self.pull_plug()
        return self.boot()

    def pull_plug(self) -> None:
        """End every process of the box at once by SIGKILL: nothing can say goodbye or write another byte."""
        if self._nspawn is None:
            return
        # When process 1 of a namespace dies, the kernel kills all others of it.
        for pid in (self._leader, self._nspawn.pid):
            if pid:
                _kill(pid)
        self._nspawn.wait()
        self._nspawn, self._leader = None, 0
        self._wait_for_empty_groups()

    def close(self) -> None:
        """Switch off and remove what the container left on this machine (not its root)."""
        self.pull_plug()
        for group in self._groups():
            for folder in sorted(group.rglob("*"), key=lambda path: len(path.parts), reverse=True):
                if folder.is_dir():
                    folder.rmdir()
            if group.is_dir():
                group.rmdir()
        for place in ("propagate", "unix-export"):
            shutil.rmtree(f"/run/systemd/nspawn/{place}/{self.name}", ignore_errors=True)
        where = self.root.stat()
        Path(f"/run/systemd/nspawn/locks/inode-{where.st_dev}:{where.st_ino}").unlink(missing_ok=True)

    def console_text(self) -> str:
        """Return everything that the console has shown, without colours."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def _groups(self) -> list[Path]:
        """Return the box's control groups on this machine: one in every hierarchy that systemd uses."""
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.split(" ", 2)
            if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
                found.append(Path(head.split()[4]) / self.name)
        return found

    def _enter_group(self) -> None:
        for group in self._groups():
            group.mkdir(exist_ok=True)

    def _join_group(self) -> None:
        for group in self._groups():
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _wait_for_empty_groups(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            lists = [path for group in self._groups() for path in group.rglob("cgroup.procs")]
            if not any(_read(path).strip() for path in lists):
                return
            time.sleep(0.05)
        raise BoxError("processes of the box outlive SIGKILL")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
