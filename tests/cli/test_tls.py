"""``appliance tls renew`` without the service; with it, tests/tls/test_https.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.service import clean_environment, running_service


def appliance(data_dir: Path, *arguments: str, tls: str = "auto") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", "--data-dir", str(data_dir), *arguments]
    environment = clean_environment(APPLIANCE_TLS=tls)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_another_certificate_and_another_authority_are_in_the_audit_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_service(data_dir):
        pass
    printed = [
        appliance(data_dir, "tls", "renew", *more).stdout.strip() for more in ((), (), ("--authority",))
    ]
    refused = appliance(data_dir, "tls", "renew", tls="off")
    log = json.loads(appliance(data_dir, "audit", "list", "--action", "tls", "--json").stdout)

    assert printed[0] == printed[1] != printed[2]
    assert printed[2] == appliance(data_dir, "tls", "fingerprint").stdout.strip()
    assert (refused.returncode, 'only with tls = "auto"' in refused.stderr) == (1, True)
    assert [(line["action"], line["target"], line["actor"]) for line in log] == [
        ("tls.renew", "authority", "command line"),
        ("tls.renew", "certificate", "command line"),
        ("tls.renew", "certificate", "command line"),
    ]


def test_before_the_first_boot_there_is_nothing_to_renew(tmp_path: Path) -> None:
    refused = appliance(tmp_path / "data", "tls", "renew")

    assert (refused.returncode, "start the service once" in refused.stderr) == (1, True)
