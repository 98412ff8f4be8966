"""How the program finds itself, in a clone and (as the bootloader would have it) frozen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import __version__
from appliance.frozen import executable, is_frozen, program_file, restore_environment, tree


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the tree of a program that believes that it is frozen and was started through a link."""
    release = tmp_path / "releases" / "1-0.1.0"
    release.mkdir(parents=True)
    (release / "appliance").touch()
    (tmp_path / "current").symlink_to(release)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "current" / "appliance"))
    return release


def test_a_clone_runs_itself_with_its_interpreter() -> None:
    assert not is_frozen()
    assert (tree() / "appliance" / "frozen.py").is_file()
    command = [*executable(), "version"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert __version__ in answer.stdout


def test_a_frozen_program_keeps_to_its_own_release(frozen: Path) -> None:
    (frozen.parents[1] / "current").unlink()
    (frozen.parents[1] / "current").symlink_to("elsewhere")
    sys.executable = str(frozen / "appliance")
    assert (tree(), executable()) == (frozen, [str(frozen / "appliance")])


def test_a_link_to_the_release_is_followed(frozen: Path) -> None:
    assert tree() == frozen
    assert program_file() == frozen / "appliance"


def test_programs_that_it_starts_get_the_library_path_of_before(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{frozen}/_internal")
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/usr/local/lib")
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", str(frozen / "appliance"))
    restore_environment()
    assert os.environ["LD_LIBRARY_PATH"] == "/usr/local/lib"
    assert "LD_LIBRARY_PATH_ORIG" not in os.environ
    assert "_PYI_ARCHIVE_FILE" not in os.environ
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{frozen}/_internal")
    restore_environment()
    assert "LD_LIBRARY_PATH" not in os.environ


def test_a_clone_keeps_its_library_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/somewhere")
    restore_environment()
    assert os.environ["LD_LIBRARY_PATH"] == "/opt/somewhere"
