"""``appliance setup``: make the first administrator on the box itself, or have it show another set-up code."""

from __future__ import annotations

import click

from appliance.cli import settings_of
from appliance.cli.user import read_password, text_of
from appliance.control.client import run_command


@click.command("setup")
@click.option("--email", help="The first administrator's e-mail.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--new-code", is_flag=True, help="Print another set-up code, in place of the one before.")
@click.pass_context
def command(ctx: click.Context, email: str | None, from_stdin: bool, new_code: bool) -> None:
    """Make the first administrator and print its key, once; root on the box needs no set-up code."""
    settings = settings_of(ctx)
    if new_code:
        if email is not None or from_stdin:
            raise click.UsageError("--new-code makes no administrator: give it alone")
        click.echo(run_command(settings, "setup.code", {})["code"])
        click.echo("This set-up code works for 30 minutes, once: POST /setup.", err=True)
        return
    if from_stdin and email is None:
        raise click.UsageError("--stdin reads the password and nothing else: give --email too")
    # Before anything is asked for: a box that is set up needs none of it.
    run_command(settings, "setup.check", {})
    email = email or click.prompt("E-mail", err=True)
    password = (
        read_password()
        if from_stdin
        else click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    )
    arguments = {"email": text_of("the e-mail", email), "password": text_of("the password", password)}
    made = run_command(settings, "setup.make", arguments)
    click.echo(made["key"])
    click.echo("The first administrator is made. This is its key, shown only this once.", err=True)
