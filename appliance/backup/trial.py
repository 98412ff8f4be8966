"""The program over a restored copy, on a loopback port, for as long as it is asked things."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from appliance.backup.errors import BackupError
from appliance.config import Settings
from appliance.frozen import executable
from appliance.workers.environment import worker_environment
from appliance.workers.sandbox import die_with_parent

BOOT_SECONDS = 180.0
ANSWER_SECONDS = 120.0
END_SECONDS = 60.0
LOG_SHOWN = 1500
LARGEST_ANSWER = 16 << 20

# Loopback only, in the clear, small, and without a word to other servers: none is in the network for examples.
OVERRIDES = {
    "host": "127.0.0.1",
    "tls": "off",
    "first_boot": "key",
    "log_level": "warning",
    "threads": "1",
    "kv_cache_bytes": str(64 << 20),
    "self_benchmark": "false",
    "provider_networks": "192.0.2.0/24",
}


class Trial:
    """A program that runs, and how to ask it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log

    def ask(self, method: str, path: str, key: str | None = None, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON of a 200. Raises BackupError for anything else."""
        try:
            status, text = self._request(method, path, key, body)
            if status == 200:
                return msgspec.json.decode(text)
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            raise BackupError(
                f"the restored box did not answer {path}: {error}. {self._last_words()}"
            ) from error
        shown = text[:LOG_SHOWN].decode("utf-8", "replace")
        raise BackupError(f"the restored box answered {path} with {status}: {shown}")

    def wait_until_ready(self) -> None:
        """Wait until every model of the copy is loaded. Raises BackupError."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BackupError(f"the program did not start over the restored copy. {self._last_words()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, text = self._request("GET", "/health/ready")
                if status == 200:
                    if msgspec.json.decode(text).get("failed"):
                        raise BackupError(f"the model of the drill could not be loaded. {self._last_words()}")
                    return
            time.sleep(0.1)
        raise BackupError(f"the program was not ready after {BOOT_SECONDS:.0f} s. {self._last_words()}")

    def _request(
        self, method: str, path: str, key: str | None = None, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS)
        headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read(LARGEST_ANSWER)
        finally:
            connection.close()

    def _last_words(self) -> str:
        text = self._log.read_bytes()[-LOG_SHOWN:].decode("utf-8", "replace").strip()
        return f"It said: {text}" if text else "It said nothing."


@contextlib.contextmanager
def booted(data_dir: Path, work: Path) -> Iterator[Trial]:
    """Run the service over ``data_dir`` until the context ends; ``work`` takes its log and settings.

    Raises BackupError when it does not become ready.
    """
    port = _free_port()
    log, configuration = work / "log", work / "empty.toml"
    # The box's own configuration must not be read: its port is taken, its certificates are elsewhere.
    configuration.write_bytes(b"")
    overrides = {**OVERRIDES, "port": str(port)}
    environment = worker_environment(1) | {
        f"APPLIANCE_{name.upper()}": value
        for name, value in overrides.items()
        if name in Settings.__struct_fields__
    }
    command = [*executable(), "--config", str(configuration), "--data-dir", str(data_dir), "serve"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=work,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - the command line has one thread
        )
    try:
        trial = Trial(process, port, log)
        trial.wait_until_ready()
        yield trial
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
