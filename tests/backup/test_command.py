"""``appliance backup`` as an operator runs it: beside a service that writes, and on a box that is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from appliance.backup.shelf import Shelf
from tests.packs_fixture import built_pack
from tests.service import EMBEDDING, clean_environment, running_service


def appliance(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=300)


def test_a_box_that_serves_is_backed_up_tried_and_restored(tmp_path: Path) -> None:
    data, key, usb = tmp_path / "data", tmp_path / "backup.key", tmp_path / "usb"
    usb.mkdir()
    (data / "packs").mkdir(parents=True)
    (data / "packs" / EMBEDDING).symlink_to(built_pack(EMBEDDING))
    public = appliance(data, "backup", "keygen", str(key)).stdout.strip()
    assert key.stat().st_mode & 0o777 == 0o600
    assert "is there already" in appliance(data, "backup", "keygen", str(key)).stderr
    with running_service(data) as service, service.http as http:
        made: list[str] = []
        ending = threading.Event()

        def make_roles() -> None:
            while not ending.is_set():
                answer = http.post("/v1/admin/roles", json={"name": f"role-{len(made)}"})
                assert answer.status_code == 201, answer.text
                made.append(f"role-{len(made)}")

        writing = threading.Thread(target=make_roles)
        writing.start()
        try:
            while len(made) < 3:
                time.sleep(0.01)
            acknowledged = made[:50]  # what one page of the list has room for
            done = appliance(data, "backup", "create", "--to", str(usb), "--encrypt-to", public, "--json")
        finally:
            ending.set()
            writing.join()
        assert done.returncode == 0, done.stderr
        created = json.loads(done.stdout)
        copy = Path(created["copy"])
        assert copy.parent == usb
        assert copy.stat().st_mode & 0o777 == 0o600
        plain = appliance(data, "backup", "create")
        assert "secret is NOT in it" in plain.stdout
        assert "in use: stop the service first" in appliance(data, "backup", "restore", str(copy)).stderr
        tried = appliance(data, "backup", "drill", created["name"])
        assert tried.returncode == 0, tried.stderr
        assert "ends with the recorded head" in tried.stdout
        assert f"384 numbers from {EMBEDDING}" in tried.stdout
        metrics = http.get("/metrics").text
        assert "\nappliance_backup_age_seconds " in metrics
        assert "\nappliance_backup_drill_age_seconds " in metrics
        # The drill left nothing, and nothing of it is in the store.
        assert not list(data.glob(".drill-*"))
        assert "drill" not in http.get("/v1/me/keys").text
        listed = json.loads(appliance(data, "backup", "list", "--json").stdout)
        assert [each["encrypted"] for each in listed["backups"]] == [False, True]
        assert listed["drill"]["problem"] is None
        actions = [line["action"] for line in json.loads(appliance(data, "audit", "list", "--json").stdout)]
        assert actions.count("backup.create") == 2

    assert appliance(data, "backup", "verify", created["name"]).returncode == 0
    new = tmp_path / "new"
    refused = appliance(new, "backup", "restore", str(copy))
    assert (refused.returncode, "--identity FILE" in refused.stderr) == (1, True)
    restored = appliance(new, "backup", "restore", str(copy), "--identity", str(key))
    assert restored.returncode == 0, restored.stderr
    assert EMBEDDING in restored.stdout
    with running_service(new) as service, service.http as http:
        names = {role["name"] for role in http.get("/v1/admin/roles?limit=100").json()["data"]}
        # What was acknowledged is there, and the restored key lets in.
        assert set(acknowledged) <= names
        assert appliance(new, "audit", "verify", "--head", created["audit_head"]).returncode == 0


def test_a_stopped_box_is_backed_up_without_the_service(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "start the service once" in appliance(data, "backup", "create").stderr
    with running_service(data) as service:
        headers = {"X-API-Key": service.key}
        assert httpx.get(f"{service.base_url}/v1/models", headers=headers, timeout=60).status_code == 200
    assert "There are no backups" in appliance(data, "backup", "list").stdout
    made = appliance(data, "backup", "create")
    assert made.returncode == 0, made.stderr
    name = Shelf(data / "backups").backups()[0].name
    restored = appliance(data, "backup", "restore", name)
    assert restored.returncode == 0, restored.stderr
    assert "data.before-restore-" in restored.stdout
    with running_service(data) as service:
        assert httpx.get(f"{service.base_url}/v1/models", headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "arguments", [["verify", "absent"], ["restore", "absent"], ["drill"], ["drill", "absent"]]
)
def test_what_is_not_there_is_said_in_a_line(tmp_path: Path, arguments: list[str]) -> None:
    refused = appliance(tmp_path / "data", "backup", *arguments)
    assert refused.returncode == 1
    assert refused.stderr.startswith("appliance: there is no backup")
    assert refused.stderr.count("\n") == 1


def test_a_backup_that_cannot_be_used_fails_the_drill(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_service(data):
        pass
    assert appliance(data, "backup", "create").returncode == 0
    (data / "secret.key").write_bytes(bytes(32))
    failed = appliance(data, "backup", "drill")
    assert failed.returncode == 1
    assert "does not fit" in failed.stderr
    assert "does not fit" in appliance(data, "backup", "list").stdout
