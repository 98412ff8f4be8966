"""The units: systemd takes them, they expose next to nothing, and every directive says why it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
MOST_EXPOSURE = 1.1

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def directives(unit: Path) -> Iterator[tuple[str, str, str]]:
    """Yield every directive with its value and the line above it."""
    above = ""
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            yield name, value, above
        above = line


def values(unit: Path, name: str) -> list[str]:
    return [value for each, value, _ in directives(unit) if each == name]


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_the_exposure_is_small(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found is not None, result.stdout + result.stderr
    assert float(found[1]) <= MOST_EXPOSURE, result.stdout


@needs_systemd
def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    # A system of its own, in which the program is where the units look for it.
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    program = tmp_path / "opt/appliance/current/appliance"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    standard = Path("/lib/systemd/system") if Path("/lib/systemd/system").is_dir() else None
    if standard is None:
        pytest.skip("systemd's own units, which ours refer to, are not installed here")
    shutil.copytree(standard, tmp_path / "lib/systemd/system", symlinks=True)
    units = [each for each in UNITS.iterdir() if each.suffix in (".service", ".socket", ".timer")]
    for unit in units:
        shutil.copy(unit, folder)
    result = subprocess.run(
        [
            *("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", f"--root={tmp_path}"),
            *(unit.name for unit in units),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "appliance" not in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["appliance.service", "appliance.socket"])
def test_every_directive_says_why(name: str) -> None:
    listed = list(directives(UNITS / name))
    assert len(listed) > 5
    for directive, value, above in listed:
        if directive not in ("Description", "Documentation"):
            assert above.startswith("# "), f"{directive}={value}"


def test_the_kernel_lets_nothing_leave_the_local_networks() -> None:
    for unit in ("appliance.service", "appliance.socket"):
        assert values(UNITS / unit, "IPAddressDeny") == ["any"]
        allowed = " ".join(values(UNITS / unit, "IPAddressAllow")).split()
        assert set(allowed) == {
            *("localhost", "link-local", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
        }


def test_what_runs_beside_the_service_has_no_network() -> None:
    for unit in SERVICES:
        if unit.name != "appliance.service":
            assert values(unit, "PrivateNetwork") == ["yes"], unit
            assert values(unit, "RestrictAddressFamilies") == ["AF_UNIX"], unit


def test_nothing_runs_as_root_but_the_way_back_from_an_upgrade() -> None:
    for unit in SERVICES:
        assert values(unit, "User") == ["appliance"]
    raised = [value for unit in SERVICES for name, value, _ in directives(unit) if value[:2].find("+") >= 0]
    assert raised == ["-+/opt/appliance/current/appliance upgrade --resume"]


def test_the_user_has_no_password_and_no_shell() -> None:
    lines = [line for line in (UNITS / "appliance.sysusers.conf").read_text().splitlines() if line[:1] != "#"]
    assert lines == ['u appliance - "AI appliance" /var/lib/appliance']
