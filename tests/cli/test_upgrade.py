"""``appliance upgrade`` and ``rollback`` where no release was ever installed: refused in words, nothing is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import clean_environment


@pytest.mark.parametrize(
    "command",
    [
        ("upgrade", "appliance-2.0.0-2.tar.zst"),
        ("upgrade", "--dry-run", "x.tar.zst"),
        ("rollback",),
        ("upgrade", "--status"),
    ],
    ids=["upgrade", "dry-run", "rollback", "status"],
)
def test_a_clone_is_told_that_releases_are_for_installed_boxes(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    data, releases = tmp_path / "data", tmp_path / "opt"
    data.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "--data-dir", str(data), *command],
        capture_output=True,
        text=True,
        env=clean_environment(APPLIANCE_RELEASES_DIR=str(releases)),
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"no release is installed in {releases}: this is for boxes that install.sh made" in done.stderr
    assert not releases.exists()
