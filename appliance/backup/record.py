"""When a backup was last made and last tried: what the metrics and the doctor ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from appliance.backup.manifest import LATEST
from appliance.backup.shelf import Shelf
from appliance.config import Settings
from appliance.disk import write_whole

Time = Annotated[int, msgspec.Meta(ge=0, le=LATEST)]


class DrillRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The last drills. Times are UTC milliseconds; ``good_at`` is of the last one that went well.

    ``problem`` says how the last one failed, None when it did not.
    """

    at: Time
    good_at: Time | None
    backup: str
    problem: str | None


def read_drill(path: Path) -> DrillRecord | None:
    """Return the record, None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DrillRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_drill(path: Path, record: DrillRecord) -> None:
    """Replace the record, on disk when this returns. Raises OSError."""
    write_whole(path, msgspec.json.encode(record), 0o600)


def last_backup(settings: Settings) -> int | None:
    """Return when the newest backup that is still there was made, UTC milliseconds. Raises BackupError."""
    newest = Shelf(settings.backups_path).newest()
    return None if newest is None else newest.created


def last_good_drill(settings: Settings) -> int | None:
    """Return when a backup was last tried with success, UTC milliseconds."""
    record = read_drill(settings.drill_path)
    return None if record is None else record.good_at
