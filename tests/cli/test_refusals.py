"""What the machine refuses ends a command in a line; a fault of the program shows its traceback."""

from __future__ import annotations

import errno
import os

import click
import pytest
from click.testing import CliRunner

from appliance.cli import LazyGroup


class OneCommand(LazyGroup):
    """A program whose every command is ``failing``."""

    failing: click.Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.failing


def program(error: OSError) -> OneCommand:
    @click.command()
    def failing() -> None:
        raise error

    made = OneCommand("appliance")
    made.failing = failing
    return made


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS])
def test_a_refusal_is_said_in_a_line(number: int) -> None:
    result = CliRunner().invoke(program(OSError(number, os.strerror(number), "/var/lib/x")), ["do"])
    said = f"appliance: cannot go on: {os.strerror(number)} (/var/lib/x)"
    assert (result.exit_code, result.stderr.startswith(said), result.stderr.count("\n")) == (1, True, 1)


def test_a_fault_keeps_its_traceback() -> None:
    error = OSError(errno.EBADF, os.strerror(errno.EBADF))
    assert CliRunner().invoke(program(error), ["do"]).exception is error
