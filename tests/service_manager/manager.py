"""A service manager that listens, for tests."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Manager:
    """Keeps every message; each is a dict of its states."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self.address = address
        self.messages: list[dict[str, str]] = []
        self._listener = listener

    def wait_for(self, wanted: Callable[[dict[str, str]], bool], seconds: float = 60) -> dict[str, str]:
        """Return the first message from now on that is wanted; fail when none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.receive():
                if wanted(message):
                    return message
        raise AssertionError(f"none of {self.messages}")

    def receive(self, seconds: float = 0.5) -> list[dict[str, str]]:
        """Return what came since the last time, waiting a little for it."""
        got: list[dict[str, str]] = []
        self._listener.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            text = self._listener.recv(1 << 16).decode()
            got.append(dict(line.split("=", 1) for line in text.splitlines()))
        self.messages += got
        return got


@contextmanager
def listening_manager(folder: Path) -> Iterator[Manager]:
    """Listen on a socket in the folder."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        yield Manager(listener, str(path))
