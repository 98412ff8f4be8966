"""Verification: goes through the whole log and says the first line that is not as it was written, and why."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import sqlite_utils

from appliance.audit.chain import EMPTY, FIRST, Head, line_mac
from appliance.audit.lines import stored_lines

Reason = Literal["changed", "missing", "reordered", "cut", "other"]


class Break(msgspec.Struct, frozen=True):
    """The first line that is wrong, and how.

    changed: or written by somebody without the secret; missing: a later one follows; reordered: another line
    stands in its place; cut: the log ends before it; other: it is not the one that a recorded head is of.
    """

    line: int
    reason: Reason
    message: str


class Verification(msgspec.Struct, frozen=True):
    """``lines`` lines are as they were written, and ``head`` is the last of them; ``broken`` None means all."""

    lines: int
    head: Head
    broken: Break | None

    def shown(self) -> dict[str, Any]:
        """Return this as JSON shows it."""
        return {
            "whole": self.broken is None,
            "lines": self.lines,
            "head": self.head.text,
            "broken": None if self.broken is None else msgspec.to_builtins(self.broken),
        }


def verify(db: sqlite_utils.Database, key: bytes, recorded: Sequence[Head] = ()) -> Verification:
    """Check every line against the one before it, and the log against heads recorded elsewhere."""
    heads = {head.line: head for head in recorded}
    conflict = next((head for head in recorded if heads[head.line].mac != head.mac), None)
    last = EMPTY
    broken = None if conflict is None else _other(conflict)
    for number, *columns, mac in stored_lines(db) if broken is None else ():
        broken = _break(db, key, last, number, columns, mac)
        if broken is None and number in heads and heads[number].mac != mac:
            broken = _other(heads[number])
        if broken is not None:
            break
        last = Head(number, mac)
    if broken is None and heads and max(heads) > last.line:
        broken = Break(
            last.line + 1,
            "cut",
            f"The log ends with line {last.line}, but line {max(heads)} was recorded: "
            "it was cut off, or a backup was restored.",
        )
    if broken is None and 0 in heads and heads[0] != EMPTY:
        broken = _other(heads[0])
    return Verification(last.line, last, broken)


def _break(
    db: sqlite_utils.Database, key: bytes, last: Head, number: int, columns: list[Any], mac: Any
) -> Break | None:
    expected = last.line + 1
    if number > expected:
        return Break(expected, "missing", f"Line {expected} is missing: line {number} follows {last.line}.")
    if number < expected:
        return Break(number, "changed", f"Line {number} has a number that no line of the log has.")
    if _is_whole(key, last.mac, number, columns, mac):
        return None
    place = _place_of(db, key, columns, mac)
    if place is not None:
        return Break(number, "reordered", f"In the place of line {number} stands what was line {place}.")
    return Break(
        number,
        "changed",
        f"Line {number} is not as it was written: it was changed, or written by somebody without the secret.",
    )


def _place_of(db: sqlite_utils.Database, key: bytes, columns: list[Any], mac: Any) -> int | None:
    """Return the number under which a line was written, if its predecessor's MAC is still anywhere near.

    Looks through the whole log, once: a swap leaves every MAC in the store, though not in its place.
    """
    before: Any = FIRST
    for number, *_, here in stored_lines(db):
        # After a swap of neighbours, the MAC before the line stands where the line was.
        for candidate in (before, here):
            if _is_whole(key, candidate, number, columns, mac):
                return int(number)
        before = here
    return None


def _is_whole(key: bytes, before: Any, number: int, columns: list[Any], mac: Any) -> bool:
    """Tell whether a line has the MAC that it must have after the one with MAC ``before``."""
    if not (isinstance(mac, bytes) and isinstance(before, bytes)):
        return False
    created_at, actor_id, *texts = columns
    try:
        line = (number, created_at, actor_id, *(text.decode() for text in texts))
    except (UnicodeDecodeError, AttributeError):
        return False
    return hmac.compare_digest(mac, line_mac(key, before, line))


def _other(head: Head) -> Break:
    return Break(
        head.line,
        "other",
        f"Line {head.line} is not the one that was recorded: the log was replaced, or cut off and continued.",
    )
