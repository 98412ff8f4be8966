"""What accounts leave behind: keys that expired, failed logins that no longer count."""

from __future__ import annotations

import asyncio
import logging

import sqlite_utils

from appliance.accounts.throttle import forget_failures
from appliance.audit.log import SERVICE, AuditLog
from appliance.clock import now_ms
from appliance.errors import ApplianceError
from appliance.storage.database import Database

log = logging.getLogger(__name__)

PERIOD_SECONDS = 3600.0
# How long an expired key stays in the store, where nobody finds it.
KEPT_MS = 7 * 86_400_000
# Rows that one write deletes: others wait for it.
DELETED_AT_ONCE = 1000

_EXPIRED = "SELECT id FROM keys WHERE expires_at < ? ORDER BY expires_at LIMIT ?"


async def keep_house(database: Database, audit: AuditLog) -> None:
    """Tidy up now and every hour, until cancelled."""
    while True:
        try:
            await tidy(database, audit)
        except ApplianceError as error:
            log.warning("expired keys stay in the store for now: %s", error.message)
        await asyncio.sleep(PERIOD_SECONDS)


async def tidy(database: Database, audit: AuditLog) -> int:
    """Delete what expired long ago, and return how many keys that were. Raises StorageError."""
    deleted = 0
    while some := await database.write(lambda db: _delete_expired(db, audit)):
        deleted += some
    await database.write(forget_failures)
    return deleted


def _delete_expired(db: sqlite_utils.Database, audit: AuditLog) -> int:
    expired = [row[0] for row in db.execute(_EXPIRED, [now_ms() - KEPT_MS, DELETED_AT_ONCE])]
    if expired:
        db.conn.executemany("DELETE FROM keys WHERE id = ?", [(key_id,) for key_id in expired])
        audit.append(db, SERVICE, "key.expire", "expired", {"keys": len(expired)})
    return len(expired)
