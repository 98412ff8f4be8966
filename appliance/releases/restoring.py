"""A restore and a switch of releases, which both put data in the place of others, keep out of each other's way."""

from __future__ import annotations

import logging
from pathlib import Path

from appliance.releases.errors import ReleaseError
from appliance.releases.journal import is_driven, read_journal, write_journal
from appliance.releases.layout import Layout
from appliance.releases.snapshot import is_there

log = logging.getLogger(__name__)


def require_no_switch(releases_dir: Path, data_dir: Path) -> None:
    """Raise ReleaseError where a switch of releases would meet a restore of ``data_dir``, or undo it at the next start.

    One that was cut off and whose snapshot is gone keeps the restored data from now on: nothing else would end it.
    To be called once more under the lock of the data, which the one who switches wants too. Raises OSError.
    """
    layout = Layout(releases_dir)
    try:
        journal = read_journal(layout.journal_path)
    except ReleaseError as error:
        log.warning("%s", error.message)  # the next start cannot read it either, and puts nothing back
        return
    if journal is None or journal.phase == "done" or Path(journal.data_dir) != data_dir:
        return
    if is_driven(layout.lock_path):
        raise ReleaseError("the appliance is being upgraded: try again in a moment")
    if journal.phase in ("begun", "opened") or journal.keep_store:
        return
    if is_there(data_dir, journal.snapshot):
        raise ReleaseError(
            f"the {journal.kind} to {journal.after} was cut off, and the next start puts the data of before it back, "
            "in place of what is restored now: first run 'appliance upgrade --resume'"
        )
    write_journal(layout.journal_path, journal.into("returning", keep_store=True))
