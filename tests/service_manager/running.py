"""The real program, started as a service manager would start it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service import clean_environment
from tests.service_manager.manager import Manager, listening_manager

# Puts descriptor N in the place of the first inherited socket, and becomes the service.
_START = (
    "import os, sys\n"
    "os.environ['LISTEN_PID'] = str(os.getpid())\n"
    "os.dup2(int(sys.argv[1]), 3, inheritable=True)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'appliance', 'serve'])\n"
)


@dataclass(frozen=True)
class Running:
    """A service with its manager; ``port`` is where it listens."""

    process: subprocess.Popen[bytes]
    manager: Manager
    log: Path
    data_dir: Path
    port: int
    environment: dict[str, str]

    def wait_until_ready(self) -> None:
        """Wait for READY=1; fail with the log when it does not come."""
        try:
            self.manager.wait_for(lambda message: message.get("READY") == "1")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-5000:]}") from None

    def command(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of the box with the service's settings."""
        return subprocess.run(
            [sys.executable, "-m", "appliance", *arguments],
            input=text,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        )

    def export_authority(self, out: Path) -> Path:
        """Write to ``out`` what clients are to trust, and return it."""
        result = self.command("tls", "export", "--out", str(out))
        assert result.returncode == 0, result.stderr
        return out

    def stop(self) -> int:
        """End it in good order; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def port_socket(host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket, as the manager holds it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(64)
    return listener


@contextmanager
def managed_service(
    folder: Path, listener: socket.socket, *, watchdog_seconds: float = 30, **settings: str
) -> Iterator[Running]:
    """Start ``appliance serve`` on an inherited socket under a manager; kill what is left at the end."""
    data_dir, log = folder / "data", folder / "service.log"
    port = listener.getsockname()[1]
    with listening_manager(folder) as manager:
        own = clean_environment(APPLIANCE_DATA_DIR=str(data_dir), APPLIANCE_PORT=str(port), **settings)
        handed = {
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(int(watchdog_seconds * 1e6)),
            "LISTEN_FDS": "1",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                env={**own, **handed},
                stdout=output,
                stderr=output,
            )
        try:
            yield Running(process, manager, log, data_dir, port, own)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            (folder / "notify").unlink()
