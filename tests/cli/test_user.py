"""``appliance user``: the users listed, and a password given when nobody can log in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.people import PASSWORD, make_person
from tests.service import Service, clean_environment, running_service

FIRST = "administrator@localhost"


def appliance(
    data_dir: Path, *arguments: str | bytes, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), "user", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=clean_environment(), timeout=60)


def takes(service: Service, user: int, password: str) -> bool:
    """Tell whether a user has this password: a change that names a wrong one is refused."""
    with service.http as http:
        body = {"password": password, "current_password": password}
        status = http.patch(f"/v1/admin/users/{user}", json=body).status_code
    assert status in (204, 401)
    return status == 204


def test_users_are_listed_with_what_they_may_spend(bare_service: Service) -> None:
    person = make_person(bare_service, budget=2.5, expires=1_999_999_999)
    listed = appliance(bare_service.data_dir, "list")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.decode().splitlines()
    assert FIRST in lines[0]
    assert "no budget limit" in lines[0]
    assert "never expires" in lines[0]
    (line,) = [line for line in lines if line.endswith(f" {person.email}")]
    assert "budget 2.500000" in line
    assert "until 2033-05-18" in line

    records = json.loads(appliance(bare_service.data_dir, "list", "--json").stdout)
    (record,) = [each for each in records if each["email"] == person.email]
    assert (record["id"], record["budget"], record["expires_at"]) == (person.id, 2_500_000, 1_999_999_999_000)
    assert "password_hash" not in record


def test_a_strangers_email_does_not_steer_the_terminal(bare_service: Service) -> None:
    make_person(bare_service, email=f"\x1b[2J\r{time.time_ns()}@example.org")
    listed = appliance(bare_service.data_dir, "list")

    assert listed.returncode == 0, listed.stderr
    assert b"\x1b" not in listed.stdout
    assert b"\r" not in listed.stdout


def test_a_password_is_reset_while_the_service_runs_and_is_in_the_audit_log(bare_service: Service) -> None:
    person = make_person(bare_service)
    assert takes(bare_service, person.id, PASSWORD)
    secret = f"new-{time.time_ns()}"
    reset = appliance(
        bare_service.data_dir, "password", person.email, "--stdin", stdin=f"{secret}\nrest".encode()
    )

    assert reset.returncode == 0, reset.stderr
    assert takes(bare_service, person.id, secret)
    assert not takes(bare_service, person.id, PASSWORD)
    with bare_service.http as http:
        log = http.get("/v1/admin/audit", params={"actor": "command line", "action": "user", "limit": 100})
    (line,) = [each for each in log.json()["data"] if each["target"] == str(person.id)]
    assert (line["action"], line["details"]) == ("user.update", {"password_changed": True})
    assert secret not in log.text


@pytest.mark.parametrize(
    ("email", "stdin", "words"),
    [
        ("nobody@example.org", b"password\n", "User not found."),
        (FIRST, b"", "1 to 1024 characters"),
        (FIRST, b"\n", "1 to 1024 characters"),
        (FIRST, b"x" * 1025, "1 to 1024 characters"),
        (FIRST, b"x" * 100_000, "1 to 1024 characters"),
        (FIRST, b"\xff\xfe\n", "not UTF-8"),
        (b"\xff@example.org", b"password\n", "not UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_in_plain_words(
    bare_service: Service, email: Any, stdin: bytes, words: str
) -> None:
    refused = appliance(bare_service.data_dir, "password", email, "--stdin", stdin=stdin)

    assert refused.returncode != 0
    assert words in refused.stderr.decode()
    assert b"Traceback" not in refused.stderr


def test_the_first_administrator_gets_a_password_without_the_service(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir):
        pass
    reset = appliance(data_dir, "password", FIRST, "--stdin", stdin="Schlüssel 🔑\r\n".encode())
    assert reset.returncode == 0, reset.stderr

    with running_service(data_dir) as service:
        assert takes(service, 1, "Schlüssel 🔑")


def test_before_the_first_boot_there_are_no_users(tmp_path: Path) -> None:
    refused = appliance(tmp_path / "data", "list")

    assert refused.returncode == 1
    assert b"start the service once" in refused.stderr
