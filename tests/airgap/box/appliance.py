"""The appliance in the box: installed by its README, asked over the LAN, driven by its own commands."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.backup.manifest import STORE
from appliance.storage.migrations import versions
from appliance.storage.sqlite import connect, wrap
from tests.airgap.box.goods import Goods
from tests.airgap.box.machine import Box
from tests.airgap.box.network import BOX_LAN, Networks
from tests.airgap.box.shell import BoxError, Output, run
from tests.samples.speech import jfk_wav

CLONE = Path(__file__).parents[3]
CARRIED = "/root/carried"
JOURNAL = "opt/appliance/upgrade.json"
BASE = f"https://{BOX_LAN}"
CODE = re.compile(r"Set-up code[^:\n]*: ([A-Z2-9]{4}(?:-[A-Z2-9]{4}){2})")
READY_SECONDS = 180


@dataclass
class Appliance:
    """One installed box. ``key`` is the first administrator's, ``authority`` the exported certificate."""

    box: Box
    nets: Networks
    folder: Path
    key: str = ""
    steps: dict[int, list[str]] = field(default_factory=dict)

    @property
    def authority(self) -> Path:
        """Where the exported authority lies on the other machine."""
        return self.folder / "authority.crt"

    def carry(self, *files: Path) -> list[str]:
        """Put files into the box, as from a stick; returns their paths there."""
        place = self.box.root / CARRIED.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, place / file.name)
        return [f"{CARRIED}/{file.name}" for file in files]

    def carry_bundle(self, bundle: Path) -> str:
        """Put a bundle and its signature into the box; returns the bundle's path there."""
        return self.carry(bundle, bundle.with_name(f"{bundle.name}.minisig"))[0]

    def install(self, goods: Goods) -> str:
        """Do what the README says, word for word, as root in the box; returns what was said."""
        self.carry(goods.outer)
        readme = run("tar", "-xOf", str(goods.outer), "README.txt").stdout
        self.steps = readme_steps(readme.replace("appliance-VERSION-NUMBER-install.tar", goods.outer.name))
        if not {1, 2, 3, 4} <= self.steps.keys():
            raise BoxError(f"the README has commands for the steps {sorted(self.steps)} only")
        checked = self.by_readme(1).stdout
        if goods.sha256 not in checked:
            raise BoxError(f"the README's check says {checked}, printed was {goods.sha256}")
        return self.by_readme(2).stdout

    def by_readme(self, step: int) -> Output:
        """Run the commands of one of the README's steps where the archive was carried to."""
        return self.box.sh("\n".join(["set -e", f"cd {CARRIED}", *self.steps[step]]), timeout=900)

    def set_up(self) -> None:
        """Redeem the code on the console for the first administrator, from another machine of the LAN."""
        self.wait_until_ready(trusting=False)
        # The first of step 3 shows the code; the second would redeem it at the console.
        self.steps[3] = self.steps[3][:1]
        told = CODE.findall(self.by_readme(3).stdout)
        shown = self.by_readme(4).stdout.strip()
        shutil.copyfile(self.box.root / CARRIED.lstrip("/") / "appliance.crt", self.authority)
        codes = CODE.findall(self.box.console_text())
        journal = self.journal()
        if not codes or codes[-1:] != told[-1:]:
            raise BoxError(
                f"the console shows the codes {codes}, the README's command {told}:\n{journal[-3000:]}"
            )
        if shown not in self.box.console_text():
            raise BoxError("the console does not show the fingerprint to trust")
        wrong = {"code": "AAAA-BBBB-CCCC", "email": "admin@box.example", "password": secrets.token_urlsafe()}
        self.call("POST", "/setup", wrong, status=401)
        made = self.call("POST", "/setup", {**wrong, "code": codes[-1]}, status=201)
        self.key = made["key"]
        self.call("POST", "/setup", {**wrong, "code": codes[-1]}, status=409)
        if re.search(r"sk-[A-Za-z0-9_-]{30}", journal + self.box.console_text()):
            raise BoxError("a key was printed to the journal or the console")

    def appliance(self, arguments: str, *, check: bool = True, timeout: float = 600) -> Output:
        """Run ``appliance ARGUMENTS`` in the box, as root at its console."""
        return self.box.sh(f"appliance {arguments}", check=check, timeout=timeout)

    def journal(self) -> str:
        """Return what the service has written to the journal in all boots."""
        return self.box.sh("journalctl -u appliance.service --no-pager -o cat", check=False).stdout

    def wait_until_ready(self, *, trusting: bool = True, seconds: float = READY_SECONDS) -> float:
        """Wait until the other machine sees every model loaded; returns the seconds it took."""
        began = time.monotonic()
        answer = ""
        while time.monotonic() - began < seconds:
            answer = self.curl("/health/ready", *([] if trusting else ["-k"]), check=False).stdout
            if '"ready"' in answer:
                return time.monotonic() - began
            time.sleep(0.5)
        state = self.box.sh(
            "systemctl status appliance.service appliance.socket --no-pager", check=False
        ).stdout
        raise BoxError(f"not ready after {seconds:.0f} s: {answer}\n{state}\n{self.journal()[-4000:]}")

    def curl(self, path: str, *options: str, check: bool = True, given: str | None = None) -> Output:
        """Call the box with the stock client of another machine of the LAN."""
        trust = ["--cacert", str(self.authority)] if "-k" not in options else []
        command = ["curl", "-q", "-sS", "--noproxy", "*", "-m", "60", *trust, *options, f"{BASE}{path}"]
        return run("ip", "netns", "exec", self.nets.mate, *command, check=check, given=given)

    def call(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        """Call one route with the administrator's key; raises BoxError for another status."""
        secret = f'header = "Authorization: Bearer {self.key}"\n' if self.key else ""
        kind = "Content-Type: application/json"
        sent = ["-H", kind, "--data", json.dumps(body)] if body is not None else []
        answer = self.curl(path, "-X", method, *sent, "-K", "-", "-w", "\n%{http_code}", given=secret).stdout
        text, _, code = answer.rpartition("\n")
        if int(code) != status:
            raise BoxError(f"{method} {path}: {code} instead of {status}: {text[:1000]}")
        return json.loads(text) if text else None

    def tour(self) -> str:
        """Have every kind of endpoint called from the other machine; returns what worked."""
        command = [sys.executable, "-m", "tests.airgap.box.tour", "--base", BASE]
        command += ["--authority", str(self.authority), "--speech", str(jfk_wav())]
        done = subprocess.run(
            ["ip", "netns", "exec", self.nets.mate, *command],
            cwd=CLONE,
            input=f"{self.key}\n",
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            raise BoxError(
                f"the tour ended after {done.stdout.split()}:\n{done.stderr}\n{self.journal()[-3000:]}"
            )
        return ", ".join(done.stdout.split())

    def release(self) -> int:
        """Return the number of the release that ``current`` leads to."""
        link = self.box.sh("readlink /opt/appliance/current").stdout.strip()
        return int(Path(link).name.split("-")[0])

    def schema(self) -> tuple[int, int]:
        """Return the schema of the store, and the oldest whose programs may open it; the service must be running."""
        connection = connect(self.box.root / "var/lib/appliance" / STORE, read_only=True)
        try:
            return versions(wrap(connection))
        finally:
            connection.close()

    def pack_version(self, pack: str) -> str:
        """Return the version of a pack that is installed."""
        return str(json.loads(self.appliance(f"pack show {pack} --json").stdout)["version"])

    def require_pack(self, pack: str, version: str) -> None:
        """Raise BoxError unless an embedding pack has this version and its model answers."""
        found = self.pack_version(pack)
        if found != version:
            raise BoxError(f"{pack} has the version {found} instead of {version}")
        self.wait_until_ready()
        self.call("POST", "/v1/embeddings", {"model": pack, "input": "a ferry"})

    def phase(self) -> str:
        """Return how far the last switch of releases has come; "" before the first."""
        try:
            return str(json.loads((self.box.root / JOURNAL).read_text())["phase"])
        except (OSError, ValueError):
            return ""

    def organizations(self) -> set[str]:
        """Return the names of all organizations: what the proof marks its steps with."""
        names: set[str] = set()
        while page := self.call("GET", f"/v1/admin/organizations?limit=100&offset={len(names)}")["data"]:
            names |= {item["name"] for item in page}
        return names

    def mark(self, name: str) -> None:
        """Write something that must be there later."""
        self.call("POST", "/v1/admin/organizations", {"name": name}, status=201)


def readme_steps(readme: str) -> dict[int, list[str]]:
    """Return the commands of the README's numbered steps: the lines indented by five."""
    steps: dict[int, list[str]] = {}
    step = 0
    for line in readme.splitlines():
        if head := re.match(r"(\d+)\. ", line):
            step = int(head[1])
        elif line and not line.startswith(" "):
            step = 0
        elif step and line.startswith("     "):
            steps.setdefault(step, []).append(line.strip())
    return steps
