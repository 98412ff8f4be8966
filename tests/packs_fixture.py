"""Packs for tests: built once by the builder, which keeps them in its cache."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

BUILD_SECONDS = 900


@functools.cache
def built_pack(name: str) -> Path:
    """Return the directory of pack ``name``, building it when the cache does not hold it.

    Raises AssertionError with the builder's output when it fails.
    """
    command = [sys.executable, "-m", "model_packs", "build", name]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}"
    directory = Path(done.stdout.strip().splitlines()[-1])
    assert (directory / "pack.toml").is_file(), f"the builder printed {directory}, which is no pack"
    return directory
