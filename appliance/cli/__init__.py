"""The commands: one module each."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from appliance import __version__
from appliance.config import Settings, load_settings
from appliance.errors import ApplianceError

# What is no fault of the program's, wherever it comes up: rights, a full disk, one that is only to be read.
REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class LazyGroup(click.Group):
    """Loads a command's module only when that command runs: ``appliance version`` needs no engine."""

    COMMANDS = (
        "serve",
        "setup",
        "pack",
        "key",
        "user",
        "audit",
        "tls",
        "backup",
        "verify",
        "upgrade",
        "rollback",
        "doctor",
        "version",
    )
    # Run by programs, not by people: help does not show them.
    HIDDEN = ("smoke",)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of help."""
        return list(self.COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import ``appliance.cli.NAME`` and return its ``command``."""
        if cmd_name not in (*self.COMMANDS, *self.HIDDEN):
            return None
        from importlib import import_module

        loaded: click.Command = import_module(f"appliance.cli.{cmd_name}").command
        return loaded

    def invoke(self, ctx: click.Context) -> Any:
        """Run; errors of ours, and the machine's refusals, end in one plain line and exit status 1."""
        try:
            return super().invoke(ctx)
        except ApplianceError as error:
            click.echo(f"appliance: {error.message}", err=True)
            sys.exit(1)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            place = "" if error.filename is None else f" ({error.filename})"
            remedy = "; run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
            click.echo(f"appliance: cannot go on: {error.strerror}{place}{remedy}", err=True)
            sys.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="The TOML configuration file.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the stores and packs are.")
@click.version_option(__version__, prog_name="appliance")
@click.pass_context
def command(ctx: click.Context, config: Path | None, data_dir: Path | None) -> None:
    """An offline AI appliance: chat, embeddings, reranking and transcription on one box."""
    ctx.obj = {"config": config, "flags": {"data_dir": data_dir}}


def settings_of(ctx: click.Context, **flags: Any) -> Settings:
    """Return the settings of this command line. Raises ConfigError."""
    return load_settings({**ctx.obj["flags"], **flags}, config_file=ctx.obj["config"])
