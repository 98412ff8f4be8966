"""One running service for the tests: the real program, the real default packs, a port of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import DefaultHttpxClient, OpenAI

from appliance.packs.manifest import read_manifest

KEY = "test-bootstrap-key-0123456789"
READY_SECONDS = 120
# For clients of plain HTTP: to load the authorities for each of them takes longer than a request.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_held: list[socket.socket] = []

CHAT = "smollm2-135m-instruct"
EMBEDDING = "bge-small-en-v1.5"
RERANK = "ms-marco-minilm-l-12-v2"
SPEECH = "whisper-base"


@dataclass(frozen=True)
class Service:
    """A service that answers, and how to reach it."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path
    base_url: str
    key: str

    def chat_graph(self, pack: str) -> Path:
        """Return the graph that a chat pack runs by: what the self-benchmark chose, else the pack's own."""
        kept = self.data_dir / "tuning.json"
        chosen = json.loads(kept.read_text()).values() if kept.is_file() else ()
        folder = self.data_dir / "packs" / pack
        names = [found["graph"] for found in chosen if (folder / found["graph"]).is_file()]
        return folder / (names[0] if names else read_manifest(folder).decoder.graph)  # type: ignore[union-attr]

    @property
    def openai(self) -> OpenAI:
        """Return the official client, without its retries: a failure must show."""
        return OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key=self.key,
            max_retries=0,
            timeout=120,
            http_client=DefaultHttpxClient(verify=PLAIN),
        )

    @property
    def http(self) -> httpx.Client:
        """Return a plain client that sends the key."""
        return httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=120,
            trust_env=False,
            verify=PLAIN,
        )


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this environment without the settings of whoever runs the tests.

    Without ``CI`` and the like too: libraries that phone home keep still where they see it.
    """
    hidden = ("APPLIANCE_", "CI", "ORT_", "GITHUB_", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    sources = os.environ.get("APPLIANCE_SOURCES_DIR")
    if sources:
        kept["APPLIANCE_SOURCES_DIR"] = sources
    return {**kept, **settings}


def free_port() -> int:
    """Return a port that nobody is given any more: it stays bound here, and servers with SO_REUSEADDR share it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    port: int = holder.getsockname()[1]
    return port


def link_default_packs(data_dir: Path, *names: str) -> None:
    """Build the default packs (cached) into a data directory; with ``names`` only those stay there."""
    command = [sys.executable, "-m", "model_packs", "build", "--default", "--into", str(data_dir / "packs")]
    subprocess.run(command, check=True, env=clean_environment())
    for pack in (data_dir / "packs").iterdir() if names else ():
        if pack.is_dir() and pack.name not in names:
            shutil.rmtree(pack)


@contextmanager
def running_service(
    data_dir: Path,
    *prefix: str,
    key: str | None = KEY,
    program: Sequence[str] = (sys.executable, "-m", "appliance"),
    **settings: str,
) -> Iterator[Service]:
    """Start ``appliance serve`` over ``data_dir`` and stop it at the end; ``prefix`` goes before the command."""
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = data_dir.parent / f"{data_dir.name}-service.log"
    environment = clean_environment(APPLIANCE_DATA_DIR=str(data_dir), APPLIANCE_PORT=str(port), **settings)
    if key is not None:
        key_file = data_dir / "bootstrap-key"
        key_file.write_text(key)
        environment["APPLIANCE_BOOTSTRAP_KEY_FILE"] = str(key_file)
    command = [*prefix, *program, "serve"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    service = Service(process, data_dir, log, f"http://127.0.0.1:{port}", key or "")
    try:
        if not prefix:  # in another network namespace this process cannot reach it
            wait_until_ready(service)
        yield service
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server in good order; one that does not is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(service: Service) -> None:
    """Wait until every model has loaded; fail with the log when the service ends first."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            break
        try:
            if (
                httpx.get(f"{service.base_url}/health/ready", trust_env=False, verify=PLAIN).status_code
                == 200
            ):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the service is not ready:\n{service.log.read_text()[-5000:]}")
