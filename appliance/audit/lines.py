"""Reading the log: every column as it lies there, whatever somebody made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import sqlite_utils

# Texts are read as bytes: one that is not UTF-8 must show as a broken line, not end the reading.
_COLUMNS = (
    "id, created_at, actor_id, CAST(actor AS BLOB), CAST(source AS BLOB), CAST(action AS BLOB), "
    "CAST(target AS BLOB), CAST(details AS BLOB), mac"
)
CHUNK = 500


class Line(msgspec.Struct, frozen=True):
    """A line for people to read. ``created_at`` is UTC milliseconds."""

    id: int
    created_at: int
    user_id: int | None
    actor: str
    source: str
    action: str
    target: str
    details: Any
    mac: str


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are wanted; None wants all.

    ``actor`` is a user's e-mail, ``action`` one like "user.create" or the noun of all that begin so,
    ``since`` and ``until`` (both included) are UTC milliseconds, ``before`` is a line's id.
    """

    actor: str | None = None
    action: str | None = None
    since: int | None = None
    until: int | None = None
    before: int | None = None
    offset: int = 0
    limit: int = 10


def stored_lines(db: sqlite_utils.Database) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of every line by id, texts as bytes. No snapshot is held between chunks."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM audit ORDER BY id LIMIT ?", [CHUNK]).fetchall()  # noqa: S608
    while rows:
        yield from rows
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM audit WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
            [rows[-1][0], CHUNK],
        ).fetchall()


def list_lines(db: sqlite_utils.Database, wanted: Filter) -> list[Line]:
    """Return lines, newest first."""
    conditions: dict[str, Any] = {
        "actor = ?": wanted.actor,
        "created_at >= ?": wanted.since,
        "created_at <= ?": wanted.until,
        "id < ?": wanted.before,
    }
    if wanted.action is not None:
        whole = "." in wanted.action
        conditions["action = ?" if whole else "substr(action, 1, instr(action, '.') - 1) = ?"] = wanted.action
    conditions = {clause: value for clause, value in conditions.items() if value is not None}
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM audit {where} ORDER BY id DESC LIMIT ? OFFSET ?",  # noqa: S608
        [*conditions.values(), wanted.limit, wanted.offset],
    )
    return [_line(row) for row in rows]


def newer_lines(db: sqlite_utils.Database, line: int, limit: int) -> list[Line]:
    """Return the lines after a line, oldest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
        [line, limit],
    )
    return [_line(row) for row in rows]


def _line(row: tuple[Any, ...]) -> Line:
    actor, source, action, target, details = (_text(value) for value in row[3:8])
    try:
        shown = msgspec.json.decode(details)
    except (msgspec.DecodeError, RecursionError):
        shown = {"unreadable": details[:1000]}
    mac = row[8].hex() if isinstance(row[8], bytes) else ""
    created_at = row[1] if isinstance(row[1], int) else 0
    return Line(row[0], created_at, row[2], actor, source, action, target, shown, mac)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
