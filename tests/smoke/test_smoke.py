"""The smoke test in a clone: it passes on tiny packs of every kind, and says what does not work or cannot be tried."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.frozen import executable
from appliance.smoke.registry import CHECKS, Ground, SkippedError, SmokeError
from appliance.smoke.run import run_checks
from build.smoke_packs import write_smoke_packs
from tests.service import clean_environment


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "packs"
    write_smoke_packs(folder)
    return folder


def smoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*executable(), "smoke", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=240)


def test_every_capability_works_here(packs: Path, tmp_path: Path) -> None:
    done = smoke("--verbose", "--packs", str(packs), "--data-dir", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    for task in ("chat", "embedding", "rerank", "speech"):
        assert f"smoke-{task} (given)" in done.stdout
    assert "the given copy" in done.stdout
    assert (tmp_path / "copy" / "appliance.db").is_file()


def test_tiny_packs_are_the_same_bytes_every_time(packs: Path, tmp_path: Path) -> None:
    write_smoke_packs(tmp_path)
    for path in packs.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(packs)).read_bytes(), path


def test_a_damaged_store_fails(tmp_path: Path) -> None:
    (tmp_path / "appliance.db").write_bytes(b"no database" * 1000)
    done = smoke("--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert any(line.startswith("FAILED  store") for line in done.stdout.splitlines())


def test_what_fails_and_what_cannot_be_tried_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.smoke.run.CHECKS", (("absent", "appliance.smoke.nothing:here"),))
    lines: list[str] = []

    def works(ground: Ground) -> str:
        return str(ground.work.is_dir())

    def cannot(_: Ground) -> str:
        raise SkippedError("no such thing here")

    def fails(_: Ground) -> str:
        raise SmokeError("it is broken")

    well = run_checks(lines.append, further=[("works", works), ("cannot", cannot), ("fails", fails)])

    assert not well
    words = [line.split()[0] for line in lines]
    assert words == ["FAILED", "ok", "skipped", "FAILED", "1"]
    assert "ModuleNotFoundError" in lines[0]
    assert lines[3].endswith("SmokeError: it is broken")
    assert lines[4] == "1 passed, 2 failed, 1 skipped"


def test_what_is_only_skipped_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.smoke.run.CHECKS", ())

    def cannot(_: Ground) -> str:
        raise SkippedError("no such thing here")

    assert run_checks(lambda _: None, further=[("cannot", cannot)])


def test_every_check_has_its_own_name() -> None:
    names = [name for name, _ in CHECKS]
    assert len(set(names)) == len(names)
