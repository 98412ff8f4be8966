"""Stopping and starting the service, through systemd."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Protocol

from appliance.disk import write_whole
from appliance.releases.errors import ReleaseError

log = logging.getLogger(__name__)

UNIT = "appliance.service"
# Where install.sh copies the units to.
UNITS = Path("/etc/systemd/system")
STOP_SECONDS = 180.0
# Loading models, and a migration of a large store before that.
START_SECONDS = 3900.0


class Manager(Protocol):
    """Whoever runs the service."""

    def running(self) -> bool:
        """Tell whether the service runs, or is about to."""

    def stop(self) -> None:
        """Return when it does not run any more. Raises ReleaseError."""

    def start(self) -> None:
        """Return when it is ready. Raises ReleaseError when it does not become so."""

    def start_later(self) -> None:
        """Have it started, and kept being tried, without waiting for that: it waits for whoever switches now."""


class Systemd:
    """Asks ``systemctl`` (another program of that name in tests).

    ``source`` has the units of the release that is started, ``target`` those that systemd reads.
    """

    def __init__(self, systemctl: str, source: Path, target: Path = UNITS) -> None:
        self._systemctl = systemctl
        self._source = source
        self._target = target

    def running(self) -> bool:
        """Tell whether the unit is active or activating."""
        done = self._run("is-active", UNIT, seconds=STOP_SECONDS)
        return done.stdout.strip() in ("active", "activating", "reloading")

    def stop(self) -> None:
        """Stop the unit. What connects meanwhile waits: its start waits for the end of the switch."""
        self._require("stop", UNIT, seconds=STOP_SECONDS)

    def start(self) -> None:
        """Start the unit, as the release has it, and wait for READY."""
        if self._renew_units():
            self._require("daemon-reload", seconds=STOP_SECONDS)
        # Starts that were given up while the switch was at work must not count against this one.
        self._run("reset-failed", UNIT, seconds=STOP_SECONDS)
        self._require("start", UNIT, seconds=START_SECONDS)

    def start_later(self) -> None:
        """Put the start into systemd's queue."""
        try:
            self._run("start", "--no-block", UNIT, seconds=STOP_SECONDS)
        except ReleaseError as error:
            log.warning("%s", error.message)

    def _renew_units(self) -> bool:
        """Install the release's units where install.sh put them; tell whether one was another."""
        if not (self._target / UNIT).is_file():
            return False
        changed = False
        for unit in sorted(self._source.glob("appliance*.[st]*")):
            if unit.suffix not in (".service", ".socket", ".timer"):
                continue
            target, text = self._target / unit.name, unit.read_bytes()
            if target.exists() and not target.is_file():
                continue  # masked: it leads to /dev/null
            if not target.exists() or target.read_bytes() != text:
                write_whole(target, text, 0o644)
                changed = True
        return changed

    def _require(self, *arguments: str, seconds: float) -> None:
        done = self._run(*arguments, seconds=seconds)
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()
            raise ReleaseError(
                f"systemctl {' '.join(arguments)} failed: {words or f'exit status {done.returncode}'} "
                f"(journalctl -u {UNIT} has more)"
            )

    def _run(self, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._systemctl, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ReleaseError(f"systemctl {' '.join(arguments)} failed: {error}") from error
