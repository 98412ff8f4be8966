"""A small data directory with a store, its secret and a pack, and backups of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlite_utils

from appliance.accounts.secret import derive, load_secret
from appliance.audit.log import SERVICE, AuditLog
from appliance.backup.creation import Created, Source, create_backup
from appliance.backup.keys import Recipient
from appliance.backup.shelf import Shelf
from appliance.packs.store import PackStore
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS
from tests.packs.sample import contents, write_pack

CONFIGURATION = 'log_level = "warning"\n'


def add_line(database: Database, secret: bytes, target: str) -> None:
    """Write one line into the audit log."""
    audit = AuditLog(derive(secret, "audit log"))
    database.write_sync(lambda db: audit.append(db, SERVICE, "test.write", target))


def lines(database_path: Path) -> list[str]:
    """Return the targets of the audit log of a store that nobody writes."""
    with sqlite_utils.Database(str(database_path), execute_plugins=False).conn as connection:
        return [row[0] for row in connection.execute("SELECT target FROM audit ORDER BY id")]


@contextmanager
def box(directory: Path, *, packs: bool = True) -> Iterator[Source]:
    """Give an open store in ``directory/data``, made at first, with what a backup needs of it."""
    data = directory / "data"
    data.mkdir(exist_ok=True)
    configuration = directory / "appliance.toml"
    configuration.write_text(CONFIGURATION)
    secret = load_secret(data / "secret.key")
    store = PackStore(data / "packs")
    if packs and not (data / "packs" / "sample").exists():
        store.install(write_pack(directory / "pack", contents(1)))
        shutil.rmtree(directory / "pack")
    database = Database.open(data / "appliance.db", MIGRATIONS)
    try:
        yield Source(
            data_dir=data, writers=[database], packs=store, secret=secret, configuration=configuration
        )
    finally:
        database.close()


def backup(source: Source, recipient: Recipient | None = None, *, daily: int = 7, weekly: int = 4) -> Created:
    """Make a backup of a box in its own folder."""
    return create_backup(source, Shelf(source.data_dir / "backups"), recipient, daily=daily, weekly=weekly)
