"""What keeps the log while the service runs: the journal's copy of every head, and the refused keys."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import sqlite_utils

from appliance.audit.chain import Head, head
from appliance.audit.lines import newer_lines
from appliance.audit.log import Actor, AuditLog
from appliance.audit.refusals import Refusal, RefusedKeys
from appliance.errors import ApplianceError
from appliance.storage.database import Database

log = logging.getLogger(__name__)

SECONDS = 1.0
# Lines of the log that one round writes to the journal; of more, the last head alone.
JOURNAL_LINES = 100
# Refused keys that one write puts into the log: others wait for it.
WRITTEN_AT_ONCE = 100


class AuditKeeper:
    """Writes to the journal what was committed, and to the log what was counted. Used on the event loop."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self.refused = RefusedKeys()
        self._database = database
        self._audit = audit
        self._journalled = 0
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._replaced = False

    async def start(self) -> None:
        """Write the present head to the journal, and begin."""
        self._audit.known = now = await self._database.read(head)
        self._journalled = now.line
        log.info("audit log: head %s", now.text)
        self._task = asyncio.create_task(self._run(), name="audit keeper")

    async def close(self) -> None:
        """Write what is left."""
        self._ending.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._try_round(closing=True)

    async def _run(self) -> None:
        while not self._ending.is_set():
            # Told to end rather than cancelled: a write that is under way must not be counted twice.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), SECONDS)
            await self._try_round()

    async def _try_round(self, *, closing: bool = False) -> None:
        try:
            await self._round(closing=closing)
        except ApplianceError as error:
            log.warning("the audit log is not kept up: %s", error.message)

    async def _round(self, *, closing: bool = False) -> None:
        await self._write(self.refused.take(all_of_it=closing))
        await self._journal()

    async def _write(self, refusals: list[Refusal]) -> None:
        for start in range(0, len(refusals), WRITTEN_AT_ONCE):
            some = refusals[start : start + WRITTEN_AT_ONCE]

            def append(db: sqlite_utils.Database, some: list[Refusal] = some) -> None:
                for each in some:
                    actor = Actor(None, "unknown", each.source)
                    details = {"minute": each.when, "requests": each.requests}
                    self._audit.append(db, actor, "key.refuse", "api", details)

            try:
                await self._database.write(append)
            except Exception:
                self.refused.put_back(refusals[start:])
                raise

    async def _journal(self) -> None:
        known = self._audit.known
        now, stands = await self._database.read(lambda db: (head(db), _has(db, known)))
        if not stands:
            if not self._replaced:
                self._replaced = True
                log.critical("the audit log no longer has line %s: it was cut off", known and known.text)
            # What was known stays known, for verification to say so.
        else:
            self._audit.known = now
        if now.line == self._journalled:
            return
        lines = await self._database.read(lambda db: newer_lines(db, self._journalled, JOURNAL_LINES))
        for line in lines:
            log.info(
                "audit %d %s %s by %s from %s, head %d:%s",
                *(line.id, line.action, line.target, line.actor, line.source, line.id, line.mac),
            )
        if now.line > self._journalled + JOURNAL_LINES:
            log.info("audit log: head %s", now.text)
        self._journalled = max(now.line, lines[-1].id if lines else 0)


def _has(db: sqlite_utils.Database, known: Head | None) -> bool:
    if known is None or known.line == 0:
        return True
    row = db.execute("SELECT mac FROM audit WHERE id = ?", [known.line]).fetchone()
    return row is not None and row[0] == known.mac
