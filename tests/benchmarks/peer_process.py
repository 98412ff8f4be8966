"""A peer's library in a process of its own, in its own environment: one JSON line in, one out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"


class PeerProcess:
    """A running ``peers/NAME.py``. ``about`` is its first line: at least ``version``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.about = self._read()

    def ask(self, **request: Any) -> Any:
        """Send one request and return the answer. Raises RuntimeError when the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended; its messages stand above")
        return json.loads(line)


@contextmanager
def running_peer(python: Path, name: str, **options: Any) -> Iterator[PeerProcess]:
    """Start ``peers/NAME.py`` with ``python`` and its options as JSON; stop it at the end."""
    command = [str(python), "-I", str(PEERS / f"{name}.py"), json.dumps(options)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=_offline()
    ) as process:
        try:
            yield PeerProcess(process)
        finally:
            process.kill()


def _offline() -> dict[str, str]:
    """Return an environment in which no peer asks a hub for what it has on disk."""
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "HF_HUB_OFFLINE": "1"}
