"""The real program under a service manager: the port that stays, readiness, the watchdog, the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import httpx

from tests.service_manager.running import managed_service, port_socket


def test_it_is_ready_alive_and_ends_as_it_says(tmp_path: Path) -> None:
    with port_socket() as listener, managed_service(tmp_path, listener, watchdog_seconds=1.5) as running:
        running.wait_until_ready()
        assert httpx.get(f"http://127.0.0.1:{running.port}/health", timeout=60).status_code == 200
        running.manager.wait_for(lambda message: message.get("WATCHDOG") == "1")
        assert any(message.get("STATUS") == "opening the store" for message in running.manager.messages)
        assert running.stop() == 0
        running.manager.wait_for(lambda message: message.get("STOPPING") == "1")


def test_a_service_that_hangs_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    with port_socket() as listener, managed_service(tmp_path, listener, watchdog_seconds=0.6) as running:
        running.wait_until_ready()
        running.process.send_signal(signal.SIGSTOP)
        while running.manager.receive(1.0):
            pass
        assert running.manager.receive(2.0) == []


def test_no_child_can_speak_to_the_manager_or_hold_the_port(tmp_path: Path) -> None:
    with port_socket() as listener, managed_service(tmp_path, listener) as running:
        running.wait_until_ready()
        environment = Path(f"/proc/{running.process.pid}/environ")
        # The kernel shows what the process was started with; what it hands on is what Python has now.
        if os.access(environment, os.R_OK):
            assert b"LISTEN_FDS" in environment.read_bytes()
        assert running.command("version").returncode == 0


def test_clients_wait_through_a_restart_instead_of_being_refused(tmp_path: Path) -> None:
    """The port is the manager's: every request made while the service restarts is answered, none refused."""
    with port_socket() as listener:
        port = listener.getsockname()[1]
        statuses: list[int] = []
        ended = threading.Event()

        def wait_for_answers(more_than: int) -> None:
            give_up = time.monotonic() + 60
            while len(statuses) <= more_than:
                assert time.monotonic() < give_up, "nobody is answered"
                time.sleep(0.05)

        def ask() -> None:
            while not ended.is_set():
                # A connection that the old process had accepted may be cut; none is ever refused.
                with (
                    contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError),
                    httpx.Client(trust_env=False, timeout=120) as http,
                ):
                    statuses.append(http.get(f"http://127.0.0.1:{port}/health").status_code)

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            try:
                with managed_service(tmp_path, listener) as running:
                    running.wait_until_ready()
                    asking = [threads.submit(ask) for _ in range(4)]
                    wait_for_answers(more_than=0)
                    assert running.stop() == 0
                before = len(statuses)
                with managed_service(tmp_path, listener) as running:
                    running.wait_until_ready()
                    wait_for_answers(more_than=before)
                    ended.set()
                    for each in asking:
                        each.result()
                    assert running.stop() == 0
            finally:
                ended.set()
        assert set(statuses) == {200}
