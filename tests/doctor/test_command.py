"""``appliance doctor`` as an operator runs it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli import command


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Point the settings at an empty data directory and a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = int(listener.getsockname()[1])
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("APPLIANCE_PORT", str(free))
    return free


@pytest.mark.usefixtures("port")
def test_words() -> None:
    result = CliRunner().invoke(command, ["doctor"])
    assert "Processor:" in result.output
    assert "No model packs are installed" in result.output
    assert "-> Install one: appliance pack install" in result.output


def test_an_error_is_exit_status_1_and_json_is_whole(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        result = CliRunner().invoke(command, ["doctor", "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["healthy"] is False
    finding = next(finding for finding in document["findings"] if finding["check"] == "port")
    assert finding["level"] == "error"
    assert str(port) in finding["remedy"]
