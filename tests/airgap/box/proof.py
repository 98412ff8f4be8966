"""The proof, stage by stage; each says in a line what it has seen, and the first that fails ends it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.airgap.box.appliance import Appliance
from tests.airgap.box.goods import FIRST, Goods
from tests.airgap.box.machine import Box
from tests.airgap.box.network import BOX_LAN, BOX_STRANGE, OUTSIDE, OUTSIDE6, RESOLVER, Networks
from tests.airgap.box.shell import BoxError, Output, run
from tests.airgap.box.upgrades import (
    a_newer_pack,
    an_older_pack_and_the_way_back,
    broken_packs_come_back,
    broken_upgrades_come_back,
    refused_in_words,
    rolled_back,
    upgraded,
)

Stage = Callable[["Proof"], str]
# Bash can connect without any program that a bare Debian lacks.
CONNECT = "timeout 2 bash -c 'echo > /dev/tcp/{}/80'; timeout 2 bash -c 'echo > /dev/tcp/{}/80'; true"
LOOK_UP = "getent hosts updates.example.com; true"
DROP_IN = "/run/systemd/system/appliance.service.d/lifted.conf"
LISTENER = (
    "import socket,sys\n"
    "with socket.create_server((sys.argv[1], 9009)) as s:\n"
    "  print('up', flush=True)\n"
    "  while True:\n"
    "    with s.accept()[0] as c, c.makefile('rb') as asked:\n"
    "      while asked.readline().strip(): pass\n"  # all of it: a close with bytes unread is a reset
    "      c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nheard')\n"
)


class Proof:
    """One box from unpacking to restoring, and what was counted meanwhile."""

    def __init__(self, box: Box, nets: Networks, goods: Goods, folder: Path) -> None:
        self.box = box
        self.nets = nets
        self.goods = goods
        self.folder = folder
        self.on = Appliance(box, nets, folder)
        self.filtered = False

    def run(self) -> None:
        """Go through all stages; raises BoxError where something is not as it must be."""
        for stage in STAGES:
            began = time.monotonic()
            said = stage(self)
            print(
                f"ok {time.monotonic() - began:6.1f} s  {stage.__name__.replace('_', ' ')}: {said}",
                flush=True,
            )
            if stage is not the_wire_counts:
                self.require_silence()

    def require_silence(self) -> None:
        """Raise BoxError when the box has sent anything towards the outside, or began anything on the LAN."""
        begun, sent = self.nets.begun(), self.nets.sent()
        if sent or begun:
            raise BoxError(f"{sent} packets left towards the outside; begun by the box: {begun}")

    def require(self, release: int, mark: str) -> None:
        """Wait until the box serves; raise BoxError unless it is that release, with ``mark`` in its data."""
        self.on.wait_until_ready()
        if self.on.release() != release:
            raise BoxError(f"release {self.on.release()} instead of {release}:\n{self.on.journal()[-3000:]}")
        if mark not in self.on.organizations():
            raise BoxError(f"what was written {mark} is gone")

    def require_schema(self, *expected: int) -> None:
        """Raise BoxError unless the store has this schema, and this oldest one whose programs may open it."""
        if self.on.schema() != expected:
            raise BoxError(f"the store has the schema {self.on.schema()} instead of {expected}")

    def refused(self, arguments: str, *words: str) -> str:
        """Run a command that must be refused, with all ``words`` in what it says; returns that."""
        done = self.on.appliance(arguments, check=False)
        said = f"{done.stdout}{done.stderr}".strip()
        if done.returncode == 0 or any(word not in said.lower() for word in words) or "Traceback" in said:
            raise BoxError(f"appliance {arguments}: exit {done.returncode}, without {words}:\n{said}")
        return said.splitlines()[-1]


def the_wire_counts(proof: Proof) -> str:
    """A look-up and two connects on purpose are counted; then the count begins."""
    proof.nets.reset()
    proof.box.sh(LOOK_UP)
    looked_up = proof.nets.sent()
    proof.box.sh(CONNECT.format(OUTSIDE, OUTSIDE6))
    time.sleep(0.3)
    sent, begun = proof.nets.sent(), proof.nets.begun()
    expected = {f"uplink udp {RESOLVER}:53", f"uplink tcp {OUTSIDE}:80", f"uplink tcp [{OUTSIDE6}]:80"}
    if not looked_up or sent <= looked_up or not expected <= set(begun):
        raise BoxError(f"the wire does not count: {looked_up}, {sent}, {begun}")
    time.sleep(3)  # what the kernel sends again belongs to this
    proof.nets.reset()
    return f"{sent} packets on the {proof.nets.sort} uplink for {', '.join(begun)}; from here on there must be none"


def installed_by_its_readme(proof: Proof) -> str:
    """The README's commands, word for word, on a box without zstd, minisign, openssl, curl and Python."""
    said = proof.on.install(proof.goods)
    if proof.on.release() != FIRST:
        raise BoxError(f"release {proof.on.release()} instead of {FIRST}:\n{said}")
    state = proof.box.sh("systemctl is-enabled appliance.service appliance.socket appliance-backup.timer")
    return f"release {FIRST}; {'/'.join(state.stdout.split())}"


def set_up_by_the_code_on_the_console(proof: Proof) -> str:
    """Once, from the LAN, without any key ever printed; wrong codes are 401, a second time is 409."""
    proof.on.set_up()
    seconds = proof.on.wait_until_ready()
    return f"administrator made over https, no key printed; ready {seconds:.1f} s later"


def every_endpoint_from_the_lan(proof: Proof) -> str:
    """Curl, httpx and the openai client, trusting only the exported authority."""
    return proof.on.tour()


def plain_http_gets_nothing(proof: Proof) -> str:
    """Neither on the port of https nor on the usual ones."""
    heard = []
    for address in (
        f"http://{BOX_LAN}:443/health",
        f"http://{BOX_LAN}/health",
        f"http://{BOX_LAN}:8080/health",
    ):
        done = _curl(proof.nets.mate, address)
        if done.returncode == 0 or done.stdout:
            raise BoxError(f"{address} answers: {done.stdout}")
        heard.append(str(done.returncode))
    return f"curl ends with {', '.join(heard)} (no answer, refused, refused)"


def the_kernels_ip_filter(proof: Proof) -> str:
    """Whether IPAddressDeny is in force: a process among the service's own cannot send a byte outside."""
    probe = (
        "echo $$ > /sys/fs/cgroup/system.slice/appliance.service/cgroup.procs"
        f" && exec bash -c 'echo > /dev/udp/{RESOLVER}/53'"
    )
    before = proof.nets.sent()
    done = proof.box.sh(probe, check=False)
    time.sleep(0.3)
    counted = proof.nets.sent() - before
    proof.filtered = done.returncode != 0 and "not permitted" in done.stderr and not counted
    proof.nets.reset()  # silent until here: see ``run``
    if not proof.filtered:
        return f"NOT in force on this machine ({counted} packets of a probe left): only attempts can be counted here"
    return (
        "in force: a process in the service's control group gets 'Operation not permitted', and nothing left"
    )


def an_address_off_the_allow_list_gets_nothing(proof: Proof) -> str:
    """A stranger reaches the box, but not the service."""
    with subprocess.Popen(
        ["ip", "netns", "exec", proof.nets.box, sys.executable, "-c", LISTENER, BOX_STRANGE],
        stdout=subprocess.PIPE,
    ) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        open_port = _curl(proof.nets.stranger, f"http://{BOX_STRANGE}:9009/")  # a port that nobody filters
        listener.kill()
    if open_port.stdout != "heard":
        raise BoxError(f"the stranger's cable does not work: curl {open_port.returncode} {open_port.stderr}")
    done = _curl(proof.nets.stranger, f"https://{BOX_STRANGE}/health")
    if not proof.filtered:
        return f"NOT PROVEN: the kernel's IP filter is not in force here (curl ends with {done.returncode})"
    if done.returncode != 28:
        raise BoxError(
            f"the stranger gets more than silence: curl {done.returncode} {done.stdout}{done.stderr}"
        )
    return "it reaches an open port of the box; the service's port stays silent (curl 28)"


def rebooted(proof: Proof) -> str:
    """The box comes back by itself."""
    proof.on.mark("before the reboot")
    boot = proof.box.reboot()
    seconds = proof.on.wait_until_ready()
    if "before the reboot" not in proof.on.organizations():
        raise BoxError("what was written before the reboot is gone")
    return f"booted in {boot:.1f} s, ready {seconds:.1f} s after that"


def every_endpoint_with_the_filter_lifted(proof: Proof) -> str:
    """What the filter would swallow unseen reaches the wire now, and would be counted."""
    proof.box.sh(
        f"mkdir -p {Path(DROP_IN).parent} && printf '[Service]\\nIPAddressDeny=\\nIPAddressAllow=\\n' > {DROP_IN}"
        " && systemctl daemon-reload && systemctl restart appliance.service"
    )
    proof.on.wait_until_ready()
    said = proof.on.tour()
    proof.require_silence()
    proof.box.sh(f"rm {DROP_IN} && systemctl daemon-reload && systemctl restart appliance.service")
    proof.on.wait_until_ready()
    return said


def restored_from_a_backup(proof: Proof) -> str:
    """What was there at the backup is there, what came later is not; the drill and the timers' services pass."""
    proof.on.mark("before the backup")
    proof.on.appliance("backup create")
    proof.on.mark("after the backup")
    proof.on.appliance("backup drill")
    listed = proof.on.appliance("backup list --json").stdout
    script = (
        "name=$(ls -t /var/lib/appliance/backups | head -n 1)"
        " && systemctl stop appliance.socket appliance.service"
        " && appliance backup restore /var/lib/appliance/backups/$name"
        " && systemctl start appliance.socket appliance.service"
    )
    proof.box.sh(script)
    proof.require(FIRST, "before the backup")
    if "after the backup" in proof.on.organizations():
        raise BoxError("the restore left what came after the backup")
    proof.box.sh("systemctl start appliance-backup.service appliance-verify.service")
    return f"drilled and restored; nightly services pass; {listed.count('backup-')} named"


def every_endpoint_once_more(proof: Proof) -> str:
    """After all that."""
    return proof.on.tour()


def nothing_left_the_box(proof: Proof) -> str:
    """The counters and the watcher, over everything since the second stage."""
    proof.require_silence()
    return "0 packets on the uplink; no look-up and no connection begun by the box, on the LAN neither"


STAGES: list[Stage] = [
    *(the_wire_counts, installed_by_its_readme, set_up_by_the_code_on_the_console),
    *(every_endpoint_from_the_lan, plain_http_gets_nothing, the_kernels_ip_filter),
    *(an_address_off_the_allow_list_gets_nothing, rebooted, every_endpoint_with_the_filter_lifted),
    *(refused_in_words, broken_upgrades_come_back, upgraded, rolled_back),
    *(a_newer_pack, broken_packs_come_back, an_older_pack_and_the_way_back, restored_from_a_backup),
    *(every_endpoint_once_more, nothing_left_the_box),
]


def _curl(namespace: str, address: str) -> Output:
    command = ["curl", "-q", "-k", "-sS", "--noproxy", "*", "-m", "5", address]
    return run("ip", "netns", "exec", namespace, *command, check=False)
