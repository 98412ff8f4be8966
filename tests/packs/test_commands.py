"""``appliance pack`` as an operator runs it, without the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import command
from tests.packs.sample import contents, write_pack


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["pack", *map(str, arguments)])


def run_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_pack_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No packs are installed" in run("list").output
    source = write_pack(tmp_path / "source", contents(1))
    assert run_json("install", source) == {"name": "sample", "version": "1", "signed_by": None}
    assert [pack["name"] for pack in run_json("list")] == ["sample"]
    assert "sample" in run("list").output
    shown = run("show", "sample")
    assert "Apache-2.0" in shown.output
    assert "model.onnx, 3.0 kB" in shown.output
    assert run_json("show", "sample")["file"][0]["path"] == "model.onnx"
    written = run_json("archive", "sample", "-o", tmp_path)
    assert written["archive"] == str(tmp_path / "sample.tar.zst")
    assert written["size"] == (tmp_path / "sample.tar.zst").stat().st_size
    assert run_json("remove", "sample") == {"removed": "sample"}
    assert run_json("list") == []
    monkeypatch.chdir(tmp_path)
    result = run("install", "--allow-unsigned", "sample.tar.zst")
    assert (result.exit_code, "Installed sample 1, without a signature." in result.output) == (0, True)
    assert run_json("verify") == [{"pack": "sample", "problem": None, "signed_by": None}]


def test_what_is_wrong_is_said_and_the_status_is_1(tmp_path: Path, data_dir: Path) -> None:
    bad = tmp_path / "bad.tar.zst"
    bad.write_bytes(b"no")
    result = run("install", "--allow-unsigned", bad)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not compressed with Zstandard" in result.stderr
    for words in (["remove", "absent"], ["show", "absent"], ["archive", "absent", "-o", str(bad)]):
        result = run(*words)
        assert result.exit_code == 1
        assert "no pack named 'absent'" in result.stderr
    run("install", write_pack(tmp_path / "source", contents(1)))
    (data_dir / "packs" / "sample" / "labels.txt").write_bytes(b"9")
    result = run("verify")
    assert result.exit_code == 1
    assert "sample: pack sample: labels.txt is damaged" in result.stdout
    result = run("verify", bad)
    assert result.exit_code == 1
    (data_dir / "packs" / "sample" / "labels.txt").unlink()
    assert "BROKEN: labels.txt is missing" in run("list").output
    assert run("show", "sample").exit_code == 1


def test_a_wrong_call_is_status_2() -> None:
    assert run("install", "/does/not/exist").exit_code == 2
    assert run("frobnicate").exit_code == 2
    assert run("show").exit_code == 2


def test_a_packs_words_do_not_steer_the_terminal(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", contents(1), description='"\\u001b[31mred\\nline"')
    run("install", source)
    for words in (["list"], ["show", "sample"]):
        output = run(*words).output
        assert "\x1b" not in output
        assert "�[31mred�line" in output
