"""The audit log's line of another release: whoever switched, and however, the log says from when on it served."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlite_utils

from appliance.audit.log import SERVICE, AuditLog
from appliance.errors import ApplianceError
from appliance.frozen import tree
from appliance.releases.layout import Layout
from appliance.storage.database import Database

log = logging.getLogger(__name__)

ACTION = "release.start"


async def record_release(database: Database, audit: AuditLog, releases_dir: Path) -> None:
    """Append a line when this program's release is another one than that of the line before; in a clone, nothing.

    To be called once the service takes writes: what a release on trial writes is taken back when it fails. A store
    that cannot be written is said in the journal; the next start tries again.
    """
    release = Layout(releases_dir).running()
    if release is None or tree() != Layout(releases_dir).directory(release).resolve():
        return
    name = f"{release.version} (number {release.sequence})"

    def append(db: sqlite_utils.Database) -> None:
        row = db.execute(
            "SELECT target FROM audit WHERE action = ? ORDER BY id DESC LIMIT 1", [ACTION]
        ).fetchone()
        before = None if row is None else row[0]
        if before != name:
            audit.append(db, SERVICE, ACTION, name, {"before": before})

    try:
        await database.write(append)
    except ApplianceError as error:
        log.warning("the audit log does not have the start of release %s: %s", name, error.message)
