"""``appliance version``."""

from __future__ import annotations

import platform

import click

from appliance import __version__


@click.command("version")
def command() -> None:
    """Print the version."""
    click.echo(f"appliance {__version__} (Python {platform.python_version()}, {platform.machine()})")
