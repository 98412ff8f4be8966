"""``appliance key``: make, list and revoke API keys, also when nobody can log in."""

from __future__ import annotations

import json

import click

from appliance.cli import settings_of
from appliance.cli.output import expiry, json_option, printable
from appliance.clock import now_ms
from appliance.control.client import run_command

DAY_MS = 86_400_000
LONGEST_DAYS = 36_500
ID = click.IntRange(1, (1 << 63) - 1)


@click.group("key")
def command() -> None:
    """Make, list and revoke API keys."""


@command.command("create")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--email", help="The user it belongs to (default: the first administrator).")
@click.option("--user", "user_id", type=ID, help="The same, by the user's id.")
@click.option("--days", type=click.IntRange(1, LONGEST_DAYS), help="Days until it expires (default: never).")
@click.pass_context
def create(ctx: click.Context, name: str, email: str | None, user_id: int | None, days: int | None) -> None:
    """Make a key and print it, once."""
    if email is not None and user_id is not None:
        raise click.UsageError("--email and --user both name the user: give one of them")
    expires_at = None if days is None else now_ms() + days * DAY_MS
    arguments = {"name": name, "email": email, "user_id": user_id, "expires_at": expires_at}
    created = run_command(settings_of(ctx), "key.create", arguments)
    click.echo(created["key"])
    click.echo(f"Key {created['id']} made. It is shown only this once.", err=True)


@command.command("list")
@click.option("--email", help="Only the keys of this user.")
@json_option
@click.pass_context
def list_(ctx: click.Context, email: str | None, as_json: bool) -> None:
    """List the keys that work, without their text."""
    keys = run_command(settings_of(ctx), "key.list", {"email": email})
    if as_json:
        click.echo(json.dumps(keys, indent=2))
        return
    for key in keys:
        click.echo(
            f"{key['id']:>5}  {key['hint']:<19}  {expiry(key['expires_at']):<16}  {key['kind']:<9}  "
            f"{printable(key['email'])}  {printable(key['name'])}"
        )


@command.command("revoke")
@click.argument("key_id", type=ID)
@click.pass_context
def revoke(ctx: click.Context, key_id: int) -> None:
    """Revoke a key at once."""
    run_command(settings_of(ctx), "key.revoke", {"id": key_id})
    click.echo(f"Key {key_id} revoked.")
