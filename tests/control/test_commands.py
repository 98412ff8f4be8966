"""Commands that write: through the socket while the service runs, on the stores when it does not; never both."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from appliance.control.address import socket_address
from appliance.control.errors import ControlError
from appliance.control.stores import exclusive_lock
from tests.packs_fixture import built_pack
from tests.service import EMBEDDING, Service, clean_environment, free_port, running_service


def appliance(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(**settings), timeout=60
    )


def status_with(service: Service, key: str) -> int:
    return httpx.get(f"{service.base_url}/v1/models", headers={"X-API-Key": key}, timeout=60).status_code


def test_a_key_made_while_the_service_runs_works_at_once_and_dies_at_once(service: Service) -> None:
    made = appliance(service.data_dir, "key", "create", "--name", "laptop", "--days", "2")
    key = made.stdout.strip()

    assert made.returncode == 0, made.stderr
    assert status_with(service, key) == 200
    listed = json.loads(appliance(service.data_dir, "key", "list", "--json").stdout)
    record = next(item for item in listed if item["name"] == "laptop")
    assert record["expires_at"] is not None
    assert key not in json.dumps(listed)
    assert appliance(service.data_dir, "key", "revoke", str(record["id"])).returncode == 0
    assert status_with(service, key) == 401


def test_refusals_are_one_plain_line(service: Service) -> None:
    refused = appliance(service.data_dir, "key", "revoke", "99999")

    assert refused.returncode == 1
    assert refused.stderr == "appliance: no key 99999\n"


def test_before_the_first_boot_there_is_nobody_to_make_a_key_for(tmp_path: Path) -> None:
    refused = appliance(tmp_path / "data", "key", "create", "--name", "x")

    assert refused.returncode == 1
    assert "start the service once" in refused.stderr


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b'{"command": "rm"}\n', b"[" * 5000 + b"\n", b"x" * (2 << 20), b""]
)
def test_a_broken_line_on_the_socket_gets_an_error_and_hurts_nobody(service: Service, line: bytes) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    with connection, socket_address(service.data_dir / "control.sock") as address:
        connection.connect(address)
        try:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
        except ConnectionError:  # the same server, a little earlier
            pass
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:  # the server closed before it had read all of a far too long line
            assert len(line) > 1 << 20
        else:
            assert b"error" in answer
    assert httpx.get(f"{service.base_url}/health", timeout=60).status_code == 200


def test_the_data_are_the_owners_only(service: Service) -> None:
    assert service.data_dir.stat().st_mode & 0o077 == 0
    for name in ("control.sock", "appliance.db", "secret.key", "spool"):
        assert (service.data_dir / name).stat().st_mode & 0o077 == 0, name


def test_a_second_service_on_the_same_data_is_refused(service: Service) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "appliance", "--data-dir", str(service.data_dir), "serve", "--port", "1"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert refused.returncode == 1
    with pytest.raises(ControlError), exclusive_lock(service.data_dir / "appliance.lock"):
        pass


def test_without_its_secret_a_store_is_not_opened(tmp_path: Path) -> None:
    with running_service(tmp_path / "data"):
        pass
    (tmp_path / "data" / "secret.key").unlink()
    refused = appliance(tmp_path / "data", "serve", "--port", str(free_port()))

    assert refused.returncode == 1
    assert "restore it from the backup" in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file is made by root")
def test_a_secret_that_the_service_s_user_may_not_read_is_said_in_words(tmp_path: Path) -> None:
    data, secret = tmp_path / "data", tmp_path / "appliance.secret"
    with running_service(data):
        pass
    (data / "secret.key").rename(secret)
    secret.chmod(0o600)
    nobody = pwd.getpwnam("nobody")
    for path in (data, *data.rglob("*")):
        os.lchown(path, nobody.pw_uid, nobody.pw_gid)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for command in (("audit", "verify"), ("key", "list")):
        refused = appliance(data, *command, APPLIANCE_SECRET_FILE=str(secret))
        assert refused.returncode == 1
        assert f"{secret} cannot be read by the user that the data belong to" in refused.stderr, (
            refused.stderr
        )


def test_a_pack_installed_while_the_service_runs_is_served_and_a_removed_one_is_not(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    source = built_pack(EMBEDDING)
    body = {"model": EMBEDDING, "input": "hello"}
    with running_service(data_dir) as service, service.http as http:
        assert http.post("/v1/embeddings", json=body).status_code == 404
        installed = appliance(data_dir, "pack", "install", str(source))
        assert installed.returncode == 0, installed.stderr
        until(lambda: http.post("/v1/embeddings", json=body).status_code == 200)
        assert appliance(data_dir, "pack", "remove", EMBEDDING).returncode == 0
        assert http.post("/v1/embeddings", json=body).status_code == 404
    assert not (data_dir / "packs" / EMBEDDING).exists()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_long_path_still_gives_a_usable_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = deep / "control.sock"
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with server, client:
        with socket_address(path) as address:
            server.bind(address)
        server.listen()
        with socket_address(path) as address:
            client.connect(address)
    assert os.path.lexists(path)
