"""The audit log: who changed what, in lines that nobody can change without the box's secret.

The key of the chain (``audit/chain.py``) derives from the secret, so whoever can write the store but does not
know the secret can neither change, reorder nor leave out a line. Cutting lines off at the end shows against
the head, which ``audit/keeper.py`` writes to the journal. Triggers of the store refuse accidents.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import msgspec
import sqlite_utils

from appliance.audit.chain import Head, encode, head, line_mac
from appliance.audit.verification import Verification, verify
from appliance.clock import now_ms
from appliance.errors import OverloadedError
from appliance.storage.database import Database

LONGEST_NAME = 320  # the longest e-mail address
LONGEST_VALUE = 1000
LONGEST_DETAILS = 8000
DEEPEST = 8
MOST_ITEMS = 256
LARGEST = 1 << 63
REPLACED = "\N{REPLACEMENT CHARACTER}"


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
        self._verifying = False
        # The newest head that this process saw committed: what is verified must still lead there.
        self.known: Head | None = None

    def append(
        self,
        db: sqlite_utils.Database,
        actor: Actor,
        action: str,
        target: str,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Add a line, inside a write task. ``action`` is "noun.verb"; ``details`` must hold no secret.

        Control characters are replaced and what is too long is cut: details may quote what a client sent.
        """
        last = head(db)
        line = (
            last.line + 1,
            now_ms(),
            actor.user_id,
            plain(actor.name, LONGEST_NAME),
            plain(actor.source, LONGEST_NAME),
            plain(action, LONGEST_NAME),
            plain(target, LONGEST_NAME),
            encoded(details or {}),
        )
        mac = line_mac(self._key, last.mac, line)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*line, mac])

    async def verify(self, database: Database, recorded: Head | None = None) -> Verification:
        """Check every line, in a thread, against the chain, the head this process knows and a recorded one.

        Raises OverloadedError while another check runs.
        """
        if self._verifying:
            raise OverloadedError("The audit log is being verified already; try again shortly.")
        self._verifying = True
        heads = [each for each in (self.known, recorded) if each is not None]
        try:
            return await database.read(lambda db: verify(db, self._key, heads))
        finally:
            self._verifying = False


def plain(text: str, longest: int) -> str:
    """Return a text of at most ``longest`` characters, none of which steers a terminal or ends a line."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(REPLACED if unicodedata.category(each) in _UNSHOWN else each for each in cut)


# Control and format characters, lone surrogates, line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def encoded(details: dict[str, Any]) -> str:
    """Return details as JSON of at most LONGEST_DETAILS characters."""
    text = encode(_bounded(msgspec.to_builtins(details, enc_hook=str), DEEPEST)).decode()
    if len(text) <= LONGEST_DETAILS:
        return text
    return encode({"cut": plain(text, LONGEST_VALUE)}).decode()


def _bounded(value: Any, depth: int) -> Any:
    """Return a JSON value without what is too long, too deep, or cannot be read back as it was written."""
    if isinstance(value, str):
        return plain(value, LONGEST_VALUE)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return plain(hex(value), LONGEST_VALUE)
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, list):
        return [_bounded(each, depth - 1) for each in value[:MOST_ITEMS]]
    items = list(value.items())[:MOST_ITEMS]
    return {plain(str(key), LONGEST_NAME): _bounded(each, depth - 1) for key, each in items}
