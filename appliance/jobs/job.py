"""A background job as it is stored, and the statements that change it.

States: queued -> running -> done | failed | cancelled; running -> queued when the service stops or
died. Each function runs inside a write or read of the store (``appliance.storage.database``).
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
import sqlite_utils

from appliance.errors import OverloadedError
from appliance.jobs.errors import JobNotFoundError

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})

# A job that took the process down this often would take it down again.
MAX_ATTEMPTS = 3
MAX_QUEUED = 100
# Ended jobs beyond these are forgotten, oldest first.
KEPT_JOBS = 1000

_COLUMNS = (
    "id, kind, state, progress_done, progress_total, arguments, result, error, attempts, "
    "cancel_requested, created_at, updated_at"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job. ``error`` is set when it failed; times are UTC milliseconds."""

    id: int
    kind: str
    state: State
    progress_done: int
    progress_total: int
    arguments: dict[str, Any]
    result: Any
    error: str | None
    attempts: int
    cancel_requested: bool
    created_at: int
    updated_at: int

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


def now_ms() -> int:
    """Return the time in UTC milliseconds."""
    return time.time_ns() // 1_000_000


def insert(db: sqlite_utils.Database, kind: str, arguments: dict[str, Any]) -> int:
    """Queue a job and return its number. Raises OverloadedError when too many wait."""
    queued = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
    if queued >= MAX_QUEUED:
        raise OverloadedError(f"{queued} jobs are waiting already; try again later.", retry_after=60)
    now = now_ms()
    row = db.execute(
        "INSERT INTO jobs (kind, state, arguments, created_at, updated_at) VALUES (?, 'queued', ?, ?, ?)"
        " RETURNING id",
        [kind, msgspec.json.encode(arguments).decode(), now, now],
    ).fetchall()[0]
    db.execute(
        "DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND id <= ?", [row[0] - KEPT_JOBS]
    )
    return int(row[0])


def select(db: sqlite_utils.Database, job_id: int) -> Job:
    """Return a job. Raises JobNotFoundError."""
    row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", [job_id]).fetchone()  # noqa: S608 - constant
    if row is None:
        raise JobNotFoundError(job_id)
    return _job(row)


def select_all(db: sqlite_utils.Database) -> tuple[Job, ...]:
    """Return the jobs, newest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY id DESC").fetchall()  # noqa: S608 - constant
    return tuple(_job(row) for row in rows)


def claim(db: sqlite_utils.Database) -> Job | None:
    """Make the oldest queued job running and return it; None when none is queued."""
    rows = db.execute(
        "UPDATE jobs SET state = 'running', attempts = attempts + 1, updated_at = ?"
        " WHERE id = (SELECT min(id) FROM jobs WHERE state = 'queued') RETURNING id",
        [now_ms()],
    ).fetchall()
    return select(db, rows[0][0]) if rows else None


def report(db: sqlite_utils.Database, job_id: int, done: int, total: int) -> None:
    """Store how far a running job is."""
    db.execute(
        "UPDATE jobs SET progress_done = ?, progress_total = ?, updated_at = ? WHERE id = ?",
        [done, total, now_ms(), job_id],
    )


def finish(
    db: sqlite_utils.Database, job_id: int, state: State, result: str | None = None, error: str | None = None
) -> None:
    """End a running job as done (with its result as JSON), failed or cancelled."""
    db.execute(
        "UPDATE jobs SET state = ?, result = ?, error = ?, updated_at = ? WHERE id = ?",
        [state, result, error, now_ms(), job_id],
    )


def give_back(db: sqlite_utils.Database, job_id: int) -> None:
    """Queue a running job again that was stopped on purpose; the attempt does not count."""
    db.execute(
        "UPDATE jobs SET state = 'queued', attempts = attempts - 1, updated_at = ? WHERE id = ?",
        [now_ms(), job_id],
    )


def request_cancel(db: sqlite_utils.Database, job_id: int) -> Job:
    """Cancel a queued job now, ask a running one to stop, leave an ended one. Raises JobNotFoundError."""
    now = now_ms()
    db.execute(
        "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, updated_at = ?"
        " WHERE id = ? AND state = 'queued'",
        [now, job_id],
    )
    db.execute(
        "UPDATE jobs SET cancel_requested = 1, updated_at = ? WHERE id = ? AND state = 'running'",
        [now, job_id],
    )
    return select(db, job_id)


def recover(db: sqlite_utils.Database) -> None:
    """Put right what a process left running that is gone: run it again, unless cancelled or tried too often."""
    now = now_ms()
    db.execute(
        "UPDATE jobs SET state = 'cancelled', updated_at = ? WHERE state = 'running' AND cancel_requested = 1",
        [now],
    )
    db.execute(
        "UPDATE jobs SET state = 'failed', error = ?, updated_at = ? WHERE state = 'running' AND attempts >= ?",
        [
            f"given up: the service stopped {MAX_ATTEMPTS} times while this job ran; its log may say why",
            now,
            MAX_ATTEMPTS,
        ],
    )
    db.execute("UPDATE jobs SET state = 'queued', updated_at = ? WHERE state = 'running'", [now])


def _job(row: tuple[Any, ...]) -> Job:
    fields = dict(zip(Job.__struct_fields__, row, strict=True))
    fields["arguments"] = msgspec.json.decode(fields["arguments"])
    fields["result"] = None if fields["result"] is None else msgspec.json.decode(fields["result"])
    return msgspec.convert(fields, Job, strict=False)
