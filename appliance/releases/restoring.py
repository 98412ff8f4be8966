"""A restore and a switch of releases, which both put data in the place of others, keep out of each other's way."""

from __future__ import annotations

import logging
from pathlib import Path

from appliance.releases.errors import ReleaseError
from appliance.releases.journal import Journal, is_driven, read_journal, write_journal
from appliance.releases.layout import Layout
from appliance.releases.snapshot import is_there

log = logging.getLogger(__name__)


def require_no_switch(releases_dir: Path, data_dir: Path) -> None:
    """Raise ReleaseError where a switch of releases would meet a restore of ``data_dir``, or undo it at the next start.

    To be called once more under the lock of the data, which the one who switches wants too. Raises OSError.
    """
    layout = Layout(releases_dir)
    journal = _not_done(layout, data_dir)
    if journal is None:
        return
    if is_driven(layout.lock_path):
        raise ReleaseError("the appliance is being upgraded: try again in a moment")
    if _puts_back(journal) and is_there(data_dir, journal.snapshot):
        raise ReleaseError(
            f"the {journal.kind} to {journal.after} was cut off, and the next start puts the data of before it back, "
            "in place of what is restored now: first run 'appliance upgrade --resume'"
        )


def keep_restored(releases_dir: Path, data_dir: Path) -> None:
    """Have a switch that was cut off, and whose snapshot is gone, keep what was restored: nothing else would end it.

    Raises OSError.
    """
    layout = Layout(releases_dir)
    journal = _not_done(layout, data_dir)
    if journal is not None and _puts_back(journal):
        write_journal(layout.journal_path, journal.into("returning", keep_store=True))


def _not_done(layout: Layout, data_dir: Path) -> Journal | None:
    try:
        journal = read_journal(layout.journal_path)
    except ReleaseError as error:
        log.warning("%s", error.message)  # the next start cannot read it either, and puts nothing back
        return None
    if journal is None or journal.phase == "done" or Path(journal.data_dir) != data_dir:
        return None
    return journal


def _puts_back(journal: Journal) -> bool:
    return journal.phase not in ("begun", "opened") and not journal.keep_store
