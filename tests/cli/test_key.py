"""``appliance key``: keys of any user, made, listed and revoked on the box, with and without the service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.people import make_person
from tests.service import Service, clean_environment, running_service


def appliance(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), "key", *arguments]
    environment = clean_environment(**settings)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def user_of(service: Service, key: str) -> int | None:
    """Return whose key it is, None when it is refused."""
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.get(f"{service.base_url}/v1/me/info", headers=headers, timeout=60)
    return int(answer.json()["id"]) if answer.status_code == 200 else None


def listed(data_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(appliance(data_dir, "list", "--json", *arguments).stdout)
    return found


def test_a_key_is_made_for_the_user_of_an_email_listed_and_revoked(bare_service: Service) -> None:
    person = make_person(bare_service)
    data_dir = bare_service.data_dir
    made = appliance(data_dir, "create", "--name", "laptop", "--email", person.email, "--days", "2")
    key = made.stdout.strip()

    assert made.returncode == 0, made.stderr
    assert user_of(bare_service, key) == person.id
    own = listed(data_dir, "--email", person.email)
    assert [each["name"] for each in own] == ["test", "laptop"]
    assert {each["user_id"] for each in listed(data_dir)} > {person.id}
    table = appliance(data_dir, "list", "--email", person.email).stdout
    assert person.email in table
    assert f"{key[:8]}...{key[-8:]}" in table
    assert key not in table

    assert appliance(data_dir, "revoke", str(own[1]["id"])).returncode == 0
    assert user_of(bare_service, key) is None
    with bare_service.http as http:
        lines = http.get("/v1/admin/audit", params={"limit": 20}).json()["data"]
    mine = [each for each in lines if each["target"] == str(own[1]["id"]) and each["actor"] == "command line"]
    assert [each["action"] for each in mine] == ["key.delete", "key.create"]


def test_refusals_are_one_plain_line(bare_service: Service) -> None:
    data_dir = bare_service.data_dir
    refusals = {
        ("create", "--name", "x", "--email", "unknown@example.org"): "there is no user unknown@example.org",
        ("create", "--name", "x", "--user", "99999"): "User not found.",
        ("create", "--name", " "): "a key needs a name of 1 to 128 characters",
        ("create", "--name", "x" * 129): "a key needs a name of 1 to 128 characters",
        ("list", "--email", "unknown@example.org"): "there is no user unknown@example.org",
        ("revoke", "99999"): "no key 99999",
        ("create", "--name", "\udcff"): "an argument is not UTF-8",
        ("list", "--email", "\udcff@example.org"): "an argument is not UTF-8",
    }
    for arguments, text in refusals.items():
        refused = appliance(data_dir, *arguments)
        assert (refused.returncode, refused.stderr) == (1, f"appliance: {text}\n")
    for arguments in (("revoke", str(2**63)), ("create", "--name", "x", "--user", "0"), ("create",)):
        assert appliance(data_dir, *arguments).returncode == 2
    both = appliance(data_dir, "create", "--name", "x", "--user", "1", "--email", "a")
    assert both.returncode == 2
    assert "give one of them" in both.stderr


def test_a_keys_name_neither_steers_the_terminal_nor_makes_a_row_of_its_own(bare_service: Service) -> None:
    person = make_person(bare_service)
    with person.http as http:
        assert http.post("/v1/me/keys", json={"name": "\x1b[2J\r\n    1  sk-fake"}).status_code == 201
    table = appliance(bare_service.data_dir, "list", "--email", person.email).stdout

    assert len(table.splitlines()) == 2
    assert "\x1b" not in table
    assert "\ufffd" in table


def test_the_first_administrator_is_one_whose_account_has_not_expired(tmp_path: Path) -> None:
    with running_service(tmp_path / "data") as service, service.http as http:
        other = make_person(service, role=1)
        ends = int(time.time()) + 5
        assert http.patch("/v1/admin/users/1", json={"expires": ends}).status_code == 204
        time.sleep(max(0.0, ends + 0.5 - time.time()))
        key = appliance(service.data_dir, "create", "--name", "locked out").stdout.strip()
        assert user_of(service, key) == other.id


def test_without_the_service_keys_are_listed_and_revoked_too(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir) as service:
        key = appliance(data_dir, "create", "--name", "lost").stdout.strip()
        assert user_of(service, key) == 1
    (lost,) = [each for each in listed(data_dir) if each["name"] == "lost"]
    assert appliance(data_dir, "revoke", str(lost["id"])).returncode == 0
    assert "lost" not in [each["name"] for each in listed(data_dir)]
    with running_service(data_dir) as service:
        assert user_of(service, key) is None


def test_the_last_key_of_the_last_administrator_can_be_made_anew_on_the_box(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir) as service, service.http as http:
        own = http.get("/v1/me/keys").json()["data"]
        assert http.delete(f"/v1/me/keys/{own[0]['id']}").status_code == 204
        assert http.get("/v1/me/info").status_code == 401
        by_service = appliance(data_dir, "create", "--name", "again").stdout.strip()
        assert user_of(service, by_service) == 1
    # Without the service the command writes by itself.
    by_itself = appliance(data_dir, "create", "--name", "offline").stdout.strip()
    too_long = appliance(data_dir, "create", "--name", "x", "--days", "8", APPLIANCE_KEY_MAX_DAYS="7")
    assert (too_long.returncode, "than 7 days" in too_long.stderr) == (1, True)
    with running_service(data_dir) as service:
        assert user_of(service, by_itself) == 1
        assert user_of(service, by_service) == 1
