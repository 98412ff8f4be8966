"""The real program upgrades itself on a box of its own: over HTTP, through the control socket, as commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from appliance.releases.journal import read_journal
from appliance.releases.layout import Layout
from appliance.storage.migrations import MIGRATIONS, oldest_reader, versions
from appliance.storage.sqlite import connect, wrap
from tests.releases.box import Maker
from tests.releases.programs import release, systemctl
from tests.service import KEY, clean_environment, free_port

SECONDS = 240

# Some twenty seconds of two cores each.
pytestmark = pytest.mark.upgrade


class Box:
    """A box whose service is the real program, started by a stand-in for systemd."""

    def __init__(self, folder: Path, maker: Maker) -> None:
        folder.mkdir()
        self.data_dir = folder / "data"
        self.data_dir.mkdir(mode=0o700)
        self.layout = Layout(folder / "opt")
        self.port = free_port()
        self.folder = folder
        self.systemctl = systemctl(folder, self.layout, self.port)
        (folder / "key").write_text(KEY)
        self.environment = clean_environment(
            APPLIANCE_DATA_DIR=str(self.data_dir),
            APPLIANCE_RELEASES_DIR=str(self.layout.root),
            APPLIANCE_TRUST_DIR=str(maker.trust),
            APPLIANCE_PORT=str(self.port),
            APPLIANCE_BOOTSTRAP_KEY_FILE=str(folder / "key"),
        )
        bundle, tree = release(maker, 1)
        self.layout.make()
        staged = self.layout.releases / ".staging-given"
        shutil.copytree(tree, staged)
        done = subprocess.run(
            [str(tree / "appliance"), "upgrade", "--install", str(staged), str(bundle)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == "installed", done.stderr

    def control(self, verb: str) -> None:
        subprocess.run([str(self.systemctl), verb, "appliance.service"], env=self.environment, check=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(self.layout.current_link / "appliance"),
            *arguments,
            "--systemctl",
            str(self.systemctl),
        ]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            str(self.layout.current_link / "appliance"),
            *arguments,
            "--systemctl",
            str(self.systemctl),
        ]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def post(self, name: str) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/admin/organizations",
            json={"name": name},
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        )

    def names(self) -> set[str]:
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/v1/admin/organizations",
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        )
        return {item["name"] for item in answer.json()["data"]}

    def releases_seen(self) -> list[str]:
        """Return which releases the audit log says have served, in their order."""
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/v1/admin/audit?action=release.start",
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30,
        )
        return [line["target"] for line in reversed(answer.json()["data"])]

    def schema(self) -> tuple[int, int]:
        with closing(connect(self.data_dir / "appliance.db", read_only=True)) as connection:
            return versions(wrap(connection))

    def end(self) -> None:
        with_pid = self.folder / "pid"
        if with_pid.exists():
            with suppress(ProcessLookupError):
                os.kill(int(with_pid.read_text()), signal.SIGKILL)


@pytest.fixture
def real(tmp_path: Path, maker: Maker) -> Iterator[Box]:
    """Give a box that serves the first release."""
    made = Box(tmp_path / "real", maker)
    try:
        made.control("start")
        assert made.post("before").status_code < 300
        yield made
    finally:
        made.end()


def test_upgrade_with_a_migration_and_the_way_back(real: Box, maker: Maker) -> None:
    bundle, _ = release(maker, 2, extra=True)
    done = real.run("upgrade", str(bundle))
    assert done.returncode == 0, done.stderr + done.stdout
    assert real.layout.current().sequence == 2
    assert real.schema() == (len(MIGRATIONS) + 1, len(MIGRATIONS))
    assert real.post("by the second").status_code < 300
    first, second = "0.1 (number 1)", "0.2 (number 2)"
    wait_for(lambda: real.releases_seen() == [first, second])
    done = real.run("rollback")
    assert done.returncode == 0, done.stderr + done.stdout
    assert real.layout.current().sequence == 1
    assert {"before", "by the second"} <= real.names()
    assert real.post("by the first again").status_code < 300
    wait_for(lambda: real.releases_seen() == [first, second, first])
    # Another start of the same release is none of another one.
    real.control("stop")
    real.control("start")
    assert real.post("after another start").status_code < 300
    assert real.releases_seen() == [first, second, first]


def test_a_broken_release_comes_back_by_itself(real: Box, maker: Maker) -> None:
    bundle, _ = release(maker, 2, extra=True, breaks=True)
    done = real.run("upgrade", str(bundle))
    assert done.returncode == 1
    assert "nothing was lost" in done.stderr
    assert real.layout.current().sequence == 1
    assert real.schema() == (len(MIGRATIONS), oldest_reader(MIGRATIONS))
    assert "before" in real.names()
    assert real.post("goes on").status_code < 300
    assert len(real.releases_seen()) == 1


def test_the_trial_refuses_writes_and_ends_when_the_command_is_killed(real: Box, maker: Maker) -> None:
    bundle, _ = release(maker, 2, extra=True)
    first = (real.folder / "pid").read_text()
    command = real.begin("upgrade", str(bundle))
    # The service of the trial is being started: the command must not come to open it.
    wait_for(lambda: phase(real) == "trial" and (real.folder / "pid").read_text() not in ("", first))
    command.send_signal(signal.SIGSTOP)
    wait_for(lambda: answers(real))
    refused = real.post("on trial")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "before" in real.names()
    command.kill()
    command.wait()
    wait_for(lambda: not answers(real))
    # As systemd would: the service that ended by itself is started again.
    real.control("start")
    assert real.layout.current().sequence == 1
    assert real.schema() == (len(MIGRATIONS), oldest_reader(MIGRATIONS))
    assert real.names() >= {"before"}
    assert real.post("after").status_code < 300


def phase(box: Box) -> str:
    journal = read_journal(box.layout.journal_path)
    return "" if journal is None else journal.phase


def answers(box: Box) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{box.port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: object) -> None:
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to that in time")
