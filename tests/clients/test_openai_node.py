"""The official Node client: one script for each concern, each ends with 0 when all it asserts holds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service import CHAT, EMBEDDING, Service

SCRIPTS = Path(__file__).parent / "node"

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("script", ["chat", "errors", "parse", "tools", "abort"])
def test_the_node_client_works(service: Service, script: str) -> None:
    node = shutil.which("node")
    assert node is not None, "node is missing"
    assert (SCRIPTS / "node_modules" / "openai").is_dir(), (
        "the client is missing: make test-clients installs it"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "SERVICE_URL": service.base_url,
        "SERVICE_KEY": service.key,
        "SERVICE_MODEL": CHAT,
        "SERVICE_EMBEDDING": EMBEDDING,
    }
    ran = subprocess.run(
        [node, f"{script}.mjs"], cwd=SCRIPTS, env=environment, capture_output=True, text=True, timeout=300
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
