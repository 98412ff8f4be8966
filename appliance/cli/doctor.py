"""``appliance doctor``: what is wrong with this machine and what to do. Exit status 1 when an error was found."""

from __future__ import annotations

import json
import socket
import sys

import click
import msgspec

from appliance.cli import settings_of
from appliance.cli.output import json_option, printable, progress_bar
from appliance.config import Settings
from appliance.control.address import socket_address
from appliance.doctor.examination import examine
from appliance.doctor.findings import Finding
from appliance.doctor.machine import examine_machine

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command("doctor")
@click.option("--verify", is_flag=True, help="Also compare every byte of the installed packs.")
@json_option
@click.pass_context
def command(ctx: click.Context, verify: bool, as_json: bool) -> None:
    """Say what is wrong with this machine and what to do about it."""
    settings = settings_of(ctx)
    with progress_bar("Verifying packs", quiet=as_json or not verify) as progress:
        machine = examine_machine(settings, lambda: service_runs(settings))
        findings = examine(settings, machine, verify=verify, progress=progress)
    healthy = all(finding.level != "error" for finding in findings)
    if as_json:
        document = {"healthy": healthy, "findings": msgspec.to_builtins(findings)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(_line(finding))
        click.echo("This machine can run the appliance." if healthy else "Errors must be put right first.")
    if not healthy:
        sys.exit(1)


def service_runs(settings: Settings) -> bool | None:
    """Ask the control socket whether the service runs with this data directory; None when forbidden."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with socket_address(settings.control_path) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return None
    return True


def _line(finding: Finding) -> str:
    level = click.style(f"{finding.level:<8}", fg=COLOURS[finding.level])
    lines = [f"{level} {finding.title}: {printable(finding.detail)}"]
    if finding.remedy:
        lines.append(f"{'':<8} -> {finding.remedy}")
    return "\n".join(lines)
