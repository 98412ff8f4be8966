"""The chain: each line's MAC covers the line and the MAC before it."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec
import sqlite_utils

from appliance.audit.errors import AuditError

MAC_BYTES = 32
FIRST = bytes(MAC_BYTES)

encode = msgspec.json.Encoder(order="sorted").encode


class Head(msgspec.Struct, frozen=True):
    """The last line of a log: its number (0 = the log is empty) and its MAC, which vouches for all before."""

    line: int
    mac: bytes

    @property
    def text(self) -> str:
        """The form in the journal and in backups: ``LINE:MAC``, the MAC in hexadecimal digits."""
        return f"{self.line}:{self.mac.hex()}"


EMPTY = Head(0, FIRST)


def parse_head(text: str) -> Head:
    """Read a head from its text. Raises AuditError."""
    number, _, digits = text.strip().partition(":")
    if number.isascii() and number.isdecimal() and len(number) <= 18:
        try:
            mac = bytes.fromhex(digits)
        except ValueError:
            mac = b""
        if len(mac) == MAC_BYTES and " " not in digits:
            return Head(int(number), mac)
    raise AuditError("A head is written LINE:MAC, the MAC with 64 hexadecimal digits.")


def head(db: sqlite_utils.Database) -> Head:
    """Return the head of the log in a store: what a backup keeps beside its copy."""
    row = db.execute("SELECT id, mac FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    return EMPTY if row is None else Head(row[0], row[1])


def line_mac(key: bytes, before: bytes, line: tuple[Any, ...]) -> bytes:
    """Return the MAC of a line (its columns but the MAC) that follows the one with MAC ``before``."""
    return hmac.digest(key, before + encode(line), hashlib.sha256)
