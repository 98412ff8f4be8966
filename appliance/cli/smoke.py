"""``appliance smoke``: the hidden command that tries this program's every capability where it is now."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from appliance.smoke.registry import Ground, SmokeError
from appliance.smoke.run import run_checks


@click.command("smoke")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="A COPY of a box's data, to migrate and use."
)
@click.option("--packs", type=click.Path(path_type=Path), help="A folder of unpacked model packs to run too.")
@click.option("--verbose", is_flag=True, help="Where a check fails, show where.")
@click.pass_context
def command(ctx: click.Context, data_dir: Path | None, packs: Path | None, verbose: bool) -> None:
    """Try everything once and print a line each; exit status 1 when something does not work here."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.CRITICAL, stream=sys.stderr)
    parent = ctx.parent
    group = parent.command if parent is not None else None

    def commands(_: Ground) -> str:
        """Load every command."""
        if not isinstance(group, click.Group) or parent is None:
            raise SmokeError("the commands are not there")
        names = group.list_commands(parent)
        if not all(group.get_command(parent, name) for name in names):
            raise SmokeError("a command does not load")
        return ", ".join(names)

    given = data_dir or (ctx.obj or {}).get("flags", {}).get("data_dir")
    well = run_checks(click.echo, data_dir=given, packs=packs, further=[("commands", commands)])
    sys.exit(0 if well else 1)
