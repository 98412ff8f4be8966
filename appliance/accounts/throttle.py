"""Guessing passwords is slow: waits that grow with the failures of an address, alone and with an e-mail.

There is no count for an e-mail alone: from another address its owner always gets in. Counts are in the store,
under an HMAC, and outlive a restart; they leak away with time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError
from appliance.accounts.keys import Keyring
from appliance.clock import now_ms
from appliance.storage.database import Database

LONGEST_WAIT_SECONDS = 900
FIRST_WAIT_SECONDS = 2
# Failures are counted this far beyond the free ones: by then the wait is the longest.
COUNTED_BEYOND = 10
# Attempts for one subject are checked one after the other; of more than these at a time the rest is refused.
LONGEST_LINE = 32
# No count has a meaning for so long.
FORGOTTEN_MS = 12 * 3_600_000
MOST_SUBJECTS = 10_000


class Rule(msgspec.Struct, frozen=True):
    """How many failures are free, and in how many milliseconds one is forgotten."""

    free: int
    leak_ms: int

    def wait_ms(self, failures: int) -> int:
        """Return how long after the last of so many failures the next attempt may come."""
        if failures < self.free:
            return 0
        return 1000 * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS << min(failures - self.free, 20))


PAIR = Rule(free=5, leak_ms=900_000)
SOURCE = Rule(free=20, leak_ms=180_000)


class TooManyAttemptsError(AccountError):
    """Too many passwords were wrong; ``retry_after`` says when the next may be tried."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many failed logins. Try again in {seconds} seconds.", retry_after=seconds)


class Attempt:
    """An attempt whose turn it is: say inside the write that ends it how it ended. Nothing said counts nothing."""

    def __init__(self, pair: bytes, source: bytes) -> None:
        self._pair = pair
        self._source = source

    def failed(self, db: sqlite_utils.Database) -> None:
        """Count a wrong password."""
        now = now_ms()
        _count(db, self._pair, PAIR, now)
        _count(db, self._source, SOURCE, now)
        _bound(db)

    def succeeded(self, db: sqlite_utils.Database) -> None:
        """Forget the failures of this e-mail from this address; those of the address alone stay."""
        db.execute("DELETE FROM login_failures WHERE subject = ?", [self._pair])


class Throttle:
    """The counts of a store and the lines of a running service. Used on the event loop only."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring
        self._lines: dict[bytes, _Line] = {}

    @asynccontextmanager
    async def turn(self, email: str, source: str) -> AsyncIterator[Attempt]:
        """Wait for one's turn to try a password for ``email`` from the address ``source``.

        Raises TooManyAttemptsError (429) while there is a wait, or when too many stand in line.
        """
        network = _network(source)
        pair = self._keyring.digest(_subject("pair", network, email))
        address = self._keyring.digest(_subject("source", network))
        async with AsyncExitStack() as turns:
            # One at a time: a thousand guesses at once must not pass before the first has failed.
            await turns.enter_async_context(self._line(pair))
            self._check(pair, PAIR)
            if self._failures(address)[0] >= SOURCE.free:
                await turns.enter_async_context(self._line(address))
            self._check(address, SOURCE)
            yield Attempt(pair, address)

    def _check(self, subject: bytes, rule: Rule) -> None:
        failures, last_at = self._failures(subject)
        passed = now_ms() - last_at
        wait = rule.wait_ms(failures) - passed
        # A clock that was set back must not make anybody wait for as long as it went.
        if wait > 0 and passed >= 0:
            raise TooManyAttemptsError(math.ceil(wait / 1000))

    def _failures(self, subject: bytes) -> tuple[int, int]:
        return self._database.read_sync(lambda db: _stored(db, subject))

    @asynccontextmanager
    async def _line(self, subject: bytes) -> AsyncIterator[None]:
        line = self._lines.setdefault(subject, _Line())
        if line.length >= LONGEST_LINE:
            raise TooManyAttemptsError(FIRST_WAIT_SECONDS)
        line.length += 1
        try:
            async with line.lock:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[subject]


class _Line:
    """Who waits for one subject's turn."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.length = 0


def forget_failures(db: sqlite_utils.Database) -> None:
    """Delete the counts that no longer mean anything, inside a write task."""
    db.execute("DELETE FROM login_failures WHERE last_at < ?", [now_ms() - FORGOTTEN_MS])


def _count(db: sqlite_utils.Database, subject: bytes, rule: Rule, now: int) -> None:
    failures, last_at = _stored(db, subject)
    left = max(0, failures - max(0, now - last_at) // rule.leak_ms)
    db.execute(
        "INSERT INTO login_failures (subject, failures, last_at) VALUES (:subject, :failures, :now) "
        "ON CONFLICT (subject) DO UPDATE SET failures = :failures, last_at = :now",
        {"subject": subject, "failures": min(left + 1, rule.free + COUNTED_BEYOND), "now": now},
    )


def _bound(db: sqlite_utils.Database) -> None:
    """Keep the table small under a flood of addresses: those with the most failures stay."""
    surplus = db.execute("SELECT count(*) FROM login_failures").fetchone()[0] - MOST_SUBJECTS
    if surplus > 0:
        # A tenth at once: sorting them has a price.
        db.execute(
            "DELETE FROM login_failures WHERE subject IN "
            "(SELECT subject FROM login_failures ORDER BY failures, last_at LIMIT ?)",
            [surplus + MOST_SUBJECTS // 10],
        )


def _stored(db: sqlite_utils.Database, subject: bytes) -> tuple[int, int]:
    row = db.execute("SELECT failures, last_at FROM login_failures WHERE subject = ?", [subject]).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def _subject(*parts: str) -> str:
    # As JSON, so that no two are written the same; no key begins with a bracket.
    return msgspec.json.encode(parts).decode()


def _network(source: str) -> str:
    """Return an address as it is counted: of IPv6, the /64 that one household or host has for itself."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)))
    return str(address)
