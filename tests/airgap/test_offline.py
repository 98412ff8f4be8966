"""With networking cut after the packs are built, everything works and nothing tries to reach out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.samples.speech import jfk_wav
from tests.service import clean_environment, link_default_packs


def test_every_endpoint_works_without_a_network_and_nothing_tries_to_leave(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    link_default_packs(data_dir)
    jfk_wav()  # fetched before the network goes
    command = [
        "unshare",
        "--map-root-user",
        "--net",
        sys.executable,
        "-m",
        "tests.airgap.inside",
        str(data_dir),
    ]

    result = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=300)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().endswith("attempts: 0"), result.stdout
