"""A store with usage records in it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlite_utils

from appliance.gateway.usage.record import Footprint, UsageRecord
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS

USER = 7


def open_store(path: Path) -> Database:
    """Open the store of the service."""
    return Database.open(path / "appliance.db", MIGRATIONS)


def ms(text: str) -> int:
    """Return the UTC milliseconds of an ISO time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def record(created_at: int, **fields: Any) -> UsageRecord:
    """Return a record of one chat: 10 tokens in, 2 out."""
    values: dict[str, Any] = {
        "user_id": USER,
        "email": "user@example.org",
        "key_id": 1,
        "key_name": "key",
        "router_id": 1,
        "model": "a",
        "provider_id": 1,
        "provider_model": "a",
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "status": 200,
        "latency_ms": 100,
        "ttft_ms": None,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost": 12,
        "footprint": Footprint(0.5, 1.0, 0.25, 0.5),
    }
    return UsageRecord(created_at=created_at, **{**values, **fields})


def keep(database: Database, *records: UsageRecord) -> None:
    """Put records into the store."""
    columns = [name for name in UsageRecord.__struct_fields__ if name != "footprint"]
    burned = Footprint.__struct_fields__

    def insert(db: sqlite_utils.Database) -> None:
        names = ", ".join([*columns, *burned])
        marks = ", ".join("?" * (len(columns) + len(burned)))
        for each in records:
            values = [getattr(each, name) for name in columns]
            values += [float(getattr(each.footprint, name)) for name in burned[:-1]]
            values.append(int(each.footprint.measured))
            db.execute(f"INSERT INTO usage ({names}) VALUES ({marks})", values)  # noqa: S608

    database.write_sync(insert)


def until_stored(data_dir: Path, condition: str, *values: Any) -> None:
    """Wait until a query of one value says yes in the store of a service that runs."""
    deadline = time.monotonic() + 30
    with closing(sqlite3.connect(f"file:{data_dir / 'appliance.db'}?mode=ro", uri=True)) as store:
        while not store.execute(condition, values).fetchone()[0]:
            assert time.monotonic() < deadline, "it is not in the store"
            time.sleep(0.02)
