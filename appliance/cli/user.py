"""``appliance user``: list the users, and give one another password, also when nobody can log in."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from appliance.cli import settings_of
from appliance.cli.output import expiry, json_option, printable
from appliance.control.client import run_command

MICROS = 1_000_000
# More than any password has bytes: what is longer need not be read to be refused.
LONGEST_INPUT = 8192


@click.group("user")
def command() -> None:
    """List users and reset their passwords."""


@command.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the users with their roles, budgets and expiries."""
    users = run_command(settings_of(ctx), "user.list", {})
    if as_json:
        click.echo(json.dumps(users, indent=2))
        return
    for user in users:
        click.echo(
            f"{user['id']:>5}  role {user['role_id']:<5} {_budget(user):<22} {expiry(user['expires_at']):<18} "
            f"{printable(user['email'])}"
        )


@command.command("password")
@click.argument("email")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input.")
@click.pass_context
def password(ctx: click.Context, email: str, from_stdin: bool) -> None:
    """Give the user EMAIL another password; its sessions end."""
    new = (
        read_password()
        if from_stdin
        else click.prompt("New password", hide_input=True, confirmation_prompt=True)
    )
    arguments = {"email": text_of("EMAIL", email), "password": text_of("the password", new)}
    changed = run_command(settings_of(ctx), "user.password", arguments)
    click.echo(f"User {changed['id']} has a new password.", err=True)


def read_password() -> str:
    """Return the first line of standard input. Raises UsageError when it is no text."""
    line = sys.stdin.buffer.readline(LONGEST_INPUT)
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("the password is not UTF-8") from None


def text_of(what: str, value: str) -> str:
    """Return a text that can be sent. Raises UsageError for bytes of a command line that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{what} is not UTF-8") from None
    return value


def _budget(user: dict[str, Any]) -> str:
    return "no budget limit" if user["budget"] is None else f"budget {user['budget'] / MICROS:.6f}"
