"""``appliance verify``: is everything that the box keeps as it was written? For a timer; exit status 1 when not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
import sqlite_utils

from appliance.cli import settings_of
from appliance.cli.audit import read_store, verified
from appliance.cli.output import printable
from appliance.config import Settings
from appliance.control.client import run_command
from appliance.errors import ApplianceError
from appliance.packs.store import PackStore

# Of the faults of one store, so many are shown.
MOST_FAULTS = 5


@click.command("verify")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Check every byte of the store and the packs, and the chain of the audit log; online."""
    settings = settings_of(ctx)
    faults = 0
    for what, problems in _checks(settings):
        faults += len(problems)
        click.echo(f"{what}: {'whole' if not problems else 'DAMAGED'}")
        for problem in problems:
            click.echo(f"  {printable(problem)}")
    if faults:
        click.echo(
            "What is damaged must be restored: appliance backup list; packs are installed again.", err=True
        )
        sys.exit(1)


def _checks(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    yield f"store {settings.database_path.name}", read_store(settings, store_faults)
    yield "audit log", _audit_faults(settings)
    packs = PackStore(settings.packs_dir)
    for pack in packs.list():
        problems = []
        try:
            packs.verify(pack.name)
        except ApplianceError as error:
            problems.append(error.message)
        yield f"pack {pack.name}", problems


def store_faults(db: sqlite_utils.Database) -> list[str]:
    """Return what is wrong with a store's pages, indexes and references; nothing when it is whole."""
    found = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({MOST_FAULTS})").fetchall()]
    faults = [] if found == ["ok"] else found
    broken = db.execute("PRAGMA foreign_key_check").fetchmany(MOST_FAULTS)
    return faults + [
        f"row {row} of {table} refers to what is not in {other}" for table, row, other, _ in broken
    ]


def _audit_faults(settings: Settings) -> list[str]:
    found = run_command(
        settings, "audit.verify", {"head": None}, without_service=lambda: verified(settings, None)
    )
    return [] if found["whole"] else [str(found["broken"]["message"])]
