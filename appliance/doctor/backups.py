"""Checks of the backups: that there is one, of late, and that one was tried."""

from __future__ import annotations

from appliance.backup.errors import BackupError
from appliance.backup.record import last_backup, last_good_drill, read_drill
from appliance.backup.shelf import is_to_come
from appliance.config import Settings
from appliance.doctor.findings import Finding, Level

DAY_MS = 86_400_000
# The timer makes one every night.
OLD_DAYS = 8
# A drill every quarter of a year is what auditors ask for.
UNTRIED_DAYS = 100
_WRONG_CLOCK = "the clock was wrong then, or is now"


def check_backups(settings: Settings, now: float) -> Finding:
    """Check how old the newest backup and the last good drill are; ``now`` is seconds since the epoch."""

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="backups", level=level, title="Backups", detail=detail, remedy=remedy)

    make, try_it = "Make one: appliance backup create", "Try it: appliance backup drill"
    if not settings.database_path.exists():
        return finding("ok", "nothing to back up yet")
    try:
        made = last_backup(settings)
    except BackupError as error:
        return finding("warning", f"The backups cannot be listed: {error.message}.", "Run this as root.")
    if made is None:
        return finding("warning", f"There is no backup in {settings.backups_path}.", make)
    if is_to_come(made, int(now * 1000)):
        return finding(
            "warning", f"The newest backup is of a time that is yet to come: {_WRONG_CLOCK}.", make
        )
    age = _days(now, made)
    if age > OLD_DAYS:
        return finding("warning", f"The newest backup is {age:.0f} days old.", make)
    record = read_drill(settings.drill_path)
    if record is not None and record.problem is not None:
        return finding("warning", f"The last drill failed: {record.problem}", try_it)
    tried = last_good_drill(settings)
    if tried is None:
        return finding("warning", f"The newest backup is {age:.1f} days old; none was ever tried.", try_it)
    if is_to_come(tried, int(now * 1000)):
        return finding("warning", f"The last drill is of a time that is yet to come: {_WRONG_CLOCK}.", try_it)
    if _days(now, tried) > UNTRIED_DAYS:
        return finding("warning", f"A backup was last tried {_days(now, tried):.0f} days ago.", try_it)
    return finding("ok", f"the newest is {age:.1f} days old; one was tried {_days(now, tried):.0f} days ago")


def _days(now: float, then_ms: int) -> float:
    return max(0.0, (now * 1000 - then_ms) / DAY_MS)
