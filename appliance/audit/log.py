"""The audit log: each line's MAC covers the line and the MAC before it.

The key derives from the box's secret, so whoever can write the store but does not know the secret can
neither change, reorder nor leave out a line. Cutting lines off at the end shows against the head, which goes
to the journal with every line.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

import msgspec
import sqlite_utils

from appliance.clock import now_ms

log = logging.getLogger(__name__)

FIRST = bytes(32)

_encode = msgspec.json.Encoder(order="sorted").encode


class Actor(msgspec.Struct, frozen=True):
    """Who does something: a user (``user_id``, ``name`` = e-mail) or the box itself, and from where."""

    user_id: int | None
    name: str
    source: str


# Commands typed on the box, and what the service does by itself.
COMMAND_LINE = Actor(None, "command line", "local")
SERVICE = Actor(None, "service", "local")


class AuditLog:
    """Appends to the log inside the write that it is about, so that neither is there without the other."""

    def __init__(self, key: bytes) -> None:
        """Take the MAC key, 32 bytes derived from the box's secret."""
        self._key = key

    def append(
        self,
        db: sqlite_utils.Database,
        actor: Actor,
        action: str,
        target: str,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Add a line, inside a write task. ``action`` is "noun.verb"; ``details`` must hold no secret."""
        last = db.execute("SELECT id, mac FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        number, before = (1, FIRST) if last is None else (last[0] + 1, last[1])
        line = (
            number,
            now_ms(),
            actor.user_id,
            actor.name,
            actor.source,
            action,
            target,
            _encode(details or {}).decode(),
        )
        mac = self.mac(before, line)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*line, mac])
        log.info("audit %d %s %s by %s, head %s", number, action, target, actor.name, mac.hex())

    def mac(self, before: bytes, line: tuple[Any, ...]) -> bytes:
        """Return the MAC of a line (its columns but the MAC) that follows the one with MAC ``before``."""
        return hmac.digest(self._key, before + _encode(line), hashlib.sha256)
