"""``appliance audit``: the same with and without a running service, and never a write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.audit.logs import tamper
from tests.people import post_id
from tests.service import clean_environment, running_service


def appliance(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), "audit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=60)


def listed(data_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    done = appliance(data_dir, "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    lines: list[dict[str, Any]] = json.loads(done.stdout)
    return lines


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[dict[str, Any]]]:
    """A service that ran: its data, what it said of its log, and its journal's last head."""
    data_dir = tmp_path_factory.mktemp("audited") / "data"
    with running_service(data_dir) as service:
        for number in range(3):
            post_id(service, "/v1/admin/organizations", {"name": f"number {number}"})
        for _ in range(4):
            httpx.get(
                f"{service.base_url}/v1/models",
                headers={"X-API-Key": "sk-wrong"},
                trust_env=False,
                timeout=60,
            )
        httpx.get(
            f"{service.base_url}/v1/models", trust_env=False, timeout=60
        )  # no key at all is no refused key
        running = listed(data_dir, "--action", "organization")
        whole = appliance(data_dir, "verify")
        assert whole.returncode == 0, whole.stderr
        assert whole.stdout.startswith("The audit log is whole: ")
    heads = [line for line in service.log.read_text().splitlines() if "head " in line]
    return data_dir, heads[-1].rpartition("head ")[2], running


def test_the_log_reads_the_same_when_the_service_is_stopped(
    stopped: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    data_dir, _, running = stopped

    assert [line["details"]["name"] for line in running] == ["number 2", "number 1", "number 0"]
    assert listed(data_dir, "--action", "organization") == running
    assert listed(data_dir, "--action", "organization", "--limit", "1") == running[:1]
    assert listed(data_dir, "--actor", "administrator@localhost", "--until", "2020-01-01") == []
    text = appliance(data_dir, "list", "--since", "2020-01-01").stdout
    assert "organization.create" in text
    assert '{"name": "number 2"}' in text


def test_refused_keys_are_one_line_of_a_source_and_minute(
    stopped: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    lines = listed(stopped[0], "--action", "key.refuse")

    assert {line["source"] for line in lines} == {"127.0.0.1"}
    assert sum(line["details"]["requests"] for line in lines) == 4
    assert len(lines) <= 2  # the four requests may lie in two minutes


def test_the_journals_last_head_is_that_of_the_stopped_log(
    stopped: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    data_dir, head, _ = stopped
    before = {path.name: path.read_bytes() for path in data_dir.glob("appliance.db*")}
    found = json.loads(appliance(data_dir, "verify", "--json", "--head", head).stdout)

    assert found["whole"] is True
    assert found["head"] == head
    assert (data_dir / "appliance.db").read_bytes() == before["appliance.db"]


def test_a_log_that_is_not_whole_is_exit_status_1(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir) as service:
        post_id(service, "/v1/admin/organizations", {"name": "one"})
        post_id(service, "/v1/admin/organizations", {"name": "two"})
    head = json.loads(appliance(data_dir, "verify", "--json").stdout)["head"]
    tamper(data_dir / "appliance.db", "DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)")
    cut = appliance(data_dir, "verify", "--head", head)
    tamper(data_dir / "appliance.db", "UPDATE audit SET actor = 'x' WHERE id = 2")
    changed = appliance(data_dir, "verify")

    assert cut.returncode == changed.returncode == 1
    assert "NOT whole" in cut.stdout
    assert "was cut off" in cut.stdout
    assert "Line 2 is not as it was written" in changed.stdout


@pytest.mark.parametrize("arguments", [["list"], ["verify"]])
def test_before_the_first_boot_there_is_no_log(tmp_path: Path, arguments: list[str]) -> None:
    refused = appliance(tmp_path / "data", *arguments)

    assert refused.returncode == 1
    assert refused.stderr.startswith("appliance: ")
    assert not (tmp_path / "data" / "secret.key").exists()


def test_a_head_that_is_none_is_a_wrong_call(tmp_path: Path) -> None:
    refused = appliance(tmp_path / "data", "verify", "--head", "12")

    assert refused.returncode == 2
    assert "LINE:MAC" in refused.stderr
