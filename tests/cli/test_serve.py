"""The first start prints a key once; later starts do not; a busy port and bad settings are said in words."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from appliance.cli.serve import DRAIN_SECONDS
from tests.service import (
    CHAT,
    Service,
    clean_environment,
    free_port,
    link_default_packs,
    running_service,
    wait_until_ready,
)


def failed_start(data_dir: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start the program as its users do, to its end, within a minute."""
    return subprocess.run(
        [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), "serve", *options],
        capture_output=True,
        text=True,
        env=clean_environment(**settings),
        timeout=60,
    )


def test_the_first_boot_shows_url_key_and_a_call_and_the_second_no_key(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir, key=None) as service:
        shown = service.log.read_text()
        key = re.search(r"shown only this once\): (sk-[A-Za-z0-9]{43})", shown)
        assert key is not None
        assert service.base_url in shown
        assert "curl" in shown
        assert (
            httpx.get(f"{service.base_url}/v1/models", headers={"X-API-Key": key[1]}, timeout=60).status_code
            == 200
        )
    service.log.write_text("")
    with running_service(data_dir, key=None) as service:
        shown = service.log.read_text()
        assert "sk-" not in shown
        assert "appliance key create" in shown
        assert (
            httpx.get(f"{service.base_url}/v1/models", headers={"X-API-Key": key[1]}, timeout=60).status_code
            == 200
        )


def test_a_key_file_is_taken_and_never_printed(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", key="from-a-file-0123456789") as service:
        assert "from-a-file" not in service.log.read_text()
        headers = {"Authorization": "Bearer from-a-file-0123456789"}
        assert httpx.get(f"{service.base_url}/v1/models", headers=headers, timeout=60).status_code == 200


def test_without_packs_the_box_serves_and_says_what_is_missing(tmp_path: Path) -> None:
    with running_service(tmp_path / "data") as service, service.http as http:
        assert http.get("/v1/models").json()["data"] == []
        assert http.post("/v1/rerank", json={"query": "a", "documents": ["b"]}).status_code == 400
        body = {"model": "x", "messages": []}
        assert http.post("/v1/chat/completions", json=body).status_code == 404


def test_a_busy_port_is_said_in_words(service: Service, tmp_path: Path) -> None:
    port = service.base_url.rsplit(":", 1)[1]
    result = failed_start(tmp_path / "data", "--port", port)
    assert result.returncode == 1
    assert "Is the service running already?" in result.stderr
    assert "Traceback" not in result.stderr
    # Nothing was made: the port comes first.
    assert not (tmp_path / "data" / "appliance.db").exists()


def test_an_unknown_setting_stops_the_start_with_one_line(tmp_path: Path) -> None:
    result = failed_start(tmp_path, APPLIANCE_PROT="1")
    assert result.returncode == 1
    assert result.stderr == "appliance: unknown setting APPLIANCE_PROT in the environment\n"


def test_what_keeps_the_service_from_starting_is_said_without_a_traceback(tmp_path: Path) -> None:
    result = failed_start(
        tmp_path / "data",
        APPLIANCE_PORT=str(free_port()),
        APPLIANCE_TRUSTED_AUTHORITIES=str(tmp_path / "nowhere.pem"),
    )
    assert result.returncode != 0
    assert str(tmp_path / "nowhere.pem") in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data" / "appliance.db-wal").exists()


@pytest.mark.parametrize("setting", ["BOOTSTRAP_KEY_FILE", "CONFIG", "SECRET_FILE", "TRUSTED_AUTHORITIES"])
def test_a_pipe_in_place_of_a_file_ends_the_start_in_words(tmp_path: Path, setting: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    names = {f"APPLIANCE_{setting}": str(pipe), "APPLIANCE_PORT": str(free_port())}
    result = failed_start(tmp_path / "data", **names)
    assert result.returncode != 0
    assert f"{pipe}: " in result.stderr
    assert "nobody writes to this pipe" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_key_is_shown_by_the_first_start_that_serves_not_lost_with_one_that_fails(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    failed = failed_start(
        data_dir, APPLIANCE_PORT=str(free_port()), APPLIANCE_TRUSTED_AUTHORITIES=str(tmp_path / "nowhere.pem")
    )
    assert failed.returncode != 0
    assert (data_dir / "appliance.db").exists()
    with running_service(data_dir, key=None) as service:
        key = re.search(r"shown only this once\): (sk-[A-Za-z0-9]{43})", service.log.read_text())
        assert key is not None
        headers = {"X-API-Key": key[1]}
        assert httpx.get(f"{service.base_url}/v1/admin/users", headers=headers, timeout=60).status_code == 200


def test_kill_9_and_start_again(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir) as service:
        service.process.kill()
        service.process.wait()
    with running_service(data_dir) as service:
        wait_until_ready(service)
        headers = {"X-API-Key": service.key}
        assert httpx.get(f"{service.base_url}/v1/models", headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with running_service(tmp_path / "data") as service:
        with socket.create_connection(("127.0.0.1", int(service.base_url.rsplit(":", 1)[1]))):
            service.process.send_signal(number)
            assert service.process.wait(60) == 0
        ended_well(service)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_ends_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    data_dir, log = tmp_path / "data", tmp_path / "log"
    link_default_packs(data_dir)
    settings = clean_environment(APPLIANCE_DATA_DIR=str(data_dir), APPLIANCE_PORT=str(free_port()))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "serve"], env=settings, stdout=output, stderr=output
        )
    try:
        # Models are looked through once the store is open, and the API is built meanwhile.
        while not (data_dir / "packs" / ".verified").exists():
            assert process.poll() is None, log.read_text()
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert not (data_dir / "appliance.db-wal").exists()
    assert "Traceback" not in log.read_text()


def test_a_signal_ends_a_stream_too(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    link_default_packs(data_dir)
    body = {
        "model": CHAT,
        "prompt": "Count: 1 2 3 4",
        "max_tokens": 4000,
        "temperature": 1,
        "stream": True,
    }
    with running_service(data_dir) as service, service.http as http:
        with http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            lines = response.iter_lines()
            next(lines)
            service.process.send_signal(signal.SIGTERM)
            # Cut short, or finished in time: it ends.
            try:
                for _ in lines:
                    pass
            except httpx.RemoteProtocolError:
                pass
        assert service.process.wait(DRAIN_SECONDS + 30) == 0
        ended_well(service)


def ended_well(service: Service) -> None:
    """Check that the stores were closed and nothing was said about it."""
    assert not (service.data_dir / "appliance.db-wal").exists()
    assert "Traceback" not in service.log.read_text()


def test_silent_connections_do_not_lock_the_box(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", APPLIANCE_MAX_CONNECTIONS="4") as service:
        address = ("127.0.0.1", int(service.base_url.rsplit(":", 1)[1]))
        silent = [socket.create_connection(address) for _ in range(50)]
        headers = {"X-API-Key": service.key}
        for _ in range(3):
            assert httpx.get(f"{service.base_url}/health", timeout=60).status_code == 200
            assert httpx.get(f"{service.base_url}/v1/models", headers=headers, timeout=60).status_code == 200
        for one in silent:
            one.close()
