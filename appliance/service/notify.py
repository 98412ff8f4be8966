"""Telling the service manager how it goes: sd_notify(3) in a few lines."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# While work goes on, the time to start or stop is extended so far ahead, and so often.
EXTENSION_SECONDS = 60.0
EXTEND_EVERY_SECONDS = 10.0
LONGEST_STATUS = 200


class Notifier:
    """Sends states to the service manager at ``address``; without one it does nothing. Any thread may use it."""

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def status(self, text: str) -> None:
        """Say in a line what the service does now."""
        self.send(STATUS=text)

    def ready(self, text: str) -> None:
        """Say that requests are served."""
        self.send(READY=1, STATUS=text)

    def stopping(self) -> None:
        """Say that the end has begun."""
        self.send(STOPPING=1, STATUS="draining: running requests are finished")

    def alive(self) -> None:
        """Feed the watchdog."""
        self.send(WATCHDOG=1)

    def extend(self, seconds: float = EXTENSION_SECONDS) -> None:
        """Ask for so much more time, from now, to start or to stop."""
        self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def send(self, **states: str | int) -> None:
        """Send the states in one message. A manager that does not take it is no reason to stop serving."""
        if self._address is None:
            return
        lines = [f"{name}={' '.join(str(value).split())[:LONGEST_STATUS]}" for name, value in states.items()]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(1.0)
                connection.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", ", ".join(states), error)

    @contextmanager
    def extending(self, text: str, most_seconds: float) -> Iterator[None]:
        """While this context lasts, say ``text`` and keep the time to start extended.

        Not beyond ``most_seconds``: what hangs must not hang for ever.
        """
        if not self.heard:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(
            target=self._keep_extending, args=(ended, most_seconds), name="notify", daemon=True
        )
        self.status(text)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _keep_extending(self, ended: threading.Event, most_seconds: float) -> None:
        give_up = time.monotonic() + most_seconds
        while time.monotonic() < give_up:
            self.extend()
            if ended.wait(EXTEND_EVERY_SECONDS):
                return
