"""While a new release is on trial it answers reads only: what it would acknowledge could not be kept."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.releases.errors import ClosedForWritesError
from appliance.releases.journal import BUSY, is_driven, read_journal
from appliance.releases.layout import Layout

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.25
# The one who switches may be between two looks at the lock.
PATIENCE = 4
RETRY_AFTER_SECONDS = 10
READS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_switched(releases_dir: Path, data_dir: Path) -> bool:
    """Tell whether a switch of releases is at work over ``data_dir``, or was cut off: what is written now may be lost.

    Raises ReleaseError when that cannot be read.
    """
    journal = read_journal(Layout(releases_dir).journal_path)
    return journal is not None and Path(journal.data_dir) == data_dir and journal.phase in (*BUSY, "trial")


class WriteGate:
    """Open, unless the journal of ``releases_dir`` says that this data directory's release is on trial."""

    def __init__(self, releases_dir: Path, data_dir: Path) -> None:
        self._layout = Layout(releases_dir)
        self._data_dir = data_dir
        self.closed = self._on_trial()

    def require_open(self, method: str) -> None:
        """Raise ClosedForWritesError for a request that is no read while the gate is closed."""
        if self.closed and method not in READS:
            raise ClosedForWritesError(
                "The appliance is being upgraded: it takes writes again in a moment.",
                retry_after=RETRY_AFTER_SECONDS,
            )

    async def watch(self) -> None:
        """Open when the journal says so; end the process when nobody is left who could say it."""
        alone = 0
        while self.closed:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            if not await asyncio.to_thread(self._on_trial):
                self.closed = False
                log.info("the new release works: open for writes")
                return
            alone = 0 if await asyncio.to_thread(self._driven) else alone + 1
            if alone >= PATIENCE:
                # The next start goes back to the old release.
                log.error(
                    "the upgrade was interrupted before this release had shown that it works: it ends here"
                )
                os.kill(os.getpid(), signal.SIGABRT)

    def _on_trial(self) -> bool:
        try:
            journal = read_journal(self._layout.journal_path)
        except ApplianceError as error:
            log.warning("%s", error.message)
            return False
        if journal is None or Path(journal.data_dir) != self._data_dir:
            return False
        return journal.phase in ("switching", "trial", "returning")

    def _driven(self) -> bool:
        try:
            return is_driven(self._layout.lock_path)
        except OSError as error:
            log.warning("cannot see whether the upgrade goes on: %s", error)
            return True
