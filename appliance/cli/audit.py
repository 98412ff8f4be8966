"""``appliance audit``: read and verify the audit log.

Exit status: 0 when all is well, 1 when the log is not whole or cannot be read, 2 for a wrong call.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec
import sqlite_utils

from appliance.accounts.secret import derive, has_secret, load_secret
from appliance.audit.chain import Head, parse_head
from appliance.audit.errors import AuditError
from appliance.audit.lines import Filter, list_lines
from appliance.audit.verification import verify as verify_lines
from appliance.cli import settings_of
from appliance.cli.output import json_option, printable
from appliance.config import Settings
from appliance.control.client import become_owner, run_command
from appliance.control.errors import ControlError
from appliance.storage.sqlite import connect, sqlite, wrap

T = TypeVar("T")

MOST_LINES = 100_000


@click.group("audit")
def command() -> None:
    """Read and verify the log of who changed what."""


@command.command("list")
@click.option("--actor", help="Only what this user (an e-mail) did.")
@click.option("--action", help='Only this action, such as user.create; or its noun, such as "user".')
@click.option("--since", type=click.DateTime(), help="Only from this time on (UTC).")
@click.option("--until", type=click.DateTime(), help="Only up to this time (UTC).")
@click.option(
    "--limit", type=click.IntRange(1, MOST_LINES), default=100, help="So many lines (default: 100)."
)
@json_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, limit: int, **wanted: Any) -> None:
    """List the newest lines, newest first."""
    settings = settings_of(ctx)
    arguments = {
        "actor": wanted["actor"],
        "action": wanted["action"],
        "since": _milliseconds(wanted["since"]),
        "until": _milliseconds(wanted["until"]),
        "limit": limit,
    }

    def offline() -> Any:
        found = read_store(settings, lambda db: list_lines(db, msgspec.convert(arguments, Filter)))
        return msgspec.to_builtins(found)

    lines = run_command(settings, "audit.list", arguments, without_service=offline)
    if as_json:
        click.echo(json.dumps(lines, indent=2, ensure_ascii=False))
        return
    for line in lines:
        # Within printable JSON and texts that the log cleaned: nothing here steers the terminal.
        when = datetime.fromtimestamp(line["created_at"] / 1000, UTC)
        details = json.dumps(line["details"], ensure_ascii=False) if line["details"] else ""
        text = f"{line['action']:<22} {line['target']}  by {line['actor']} from {line['source']}  {details}"
        click.echo(f"{line['id']:>7}  {when:%Y-%m-%d %H:%M:%S}  {printable(text)}".rstrip())


@command.command("verify")
@click.option("--head", "head_text", metavar="LINE:MAC", help="A head recorded elsewhere: journal or backup.")
@json_option
@click.pass_context
def verify(ctx: click.Context, head_text: str | None, as_json: bool) -> None:
    """Check that no line was changed, left out or moved; with --head, that none was cut off at the end."""
    settings = settings_of(ctx)
    try:
        recorded = None if head_text is None else parse_head(head_text)
    except AuditError as error:
        raise click.BadParameter(error.message, param_hint="--head") from None
    arguments = {"head": None if recorded is None else recorded.text}
    found = run_command(
        settings, "audit.verify", arguments, without_service=lambda: verified(settings, recorded)
    )
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found["whole"]:
        click.echo(f"The audit log is whole: {found['lines']} lines. Head: {found['head']}")
    else:
        click.echo(f"The audit log is NOT whole. {found['broken']['message']}")
        click.echo(f"Whole up to: {found['head']}")
    if not found["whole"]:
        sys.exit(1)


def read_store(settings: Settings, read: Callable[[sqlite_utils.Database], T]) -> T:
    """Return what ``read`` finds in the store, which is opened read-only. Raises ControlError."""
    become_owner(settings.data_dir)  # SQLite's shared memory would belong to root
    if not settings.database_path.exists():
        raise ControlError(f"there is no store in {settings.data_dir} yet: start the service once")
    connection = connect(settings.database_path, read_only=True)
    try:
        return read(wrap(connection))
    except sqlite.Error as error:
        raise ControlError(f"the audit log cannot be read: {error}") from error
    finally:
        connection.close()


def verified(settings: Settings, recorded: Head | None) -> Any:
    """Return what a verification of the log shows, read from the store. Raises ControlError."""
    become_owner(settings.data_dir)
    if not has_secret(settings.secret_path):
        raise ControlError(f"{settings.secret_path} is missing, without which the log cannot be verified")
    key = derive(load_secret(settings.secret_path), "audit log")
    heads = [] if recorded is None else [recorded]
    return read_store(settings, lambda db: verify_lines(db, key, heads)).shown()


def _milliseconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1000)
