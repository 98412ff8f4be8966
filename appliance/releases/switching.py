"""Switching from one release to another, and what the next start does when that was interrupted.

The order is everything. No step acknowledges what a later one could lose:

1. ``begun``; the service stops; its stores, packs and configuration are copied (the snapshot).
2. ``switching``; ``current`` leads to the new release. ``trial``; it starts with writes closed and is asked
   whether it works. Until here the way back is the old release with the snapshot, and nothing was lost.
3. ``opened``: the service sees it and takes writes. From here on the store is kept whatever happens.
4. ``keeper`` follows, older releases go, ``done``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from appliance.backup.swap import acting_as_owner
from appliance.clock import now_ms
from appliance.errors import ApplianceError
from appliance.releases import configuration, snapshot
from appliance.releases.errors import ReleaseError
from appliance.releases.journal import (
    BUSY,
    Journal,
    Phase,
    driving,
    is_driven,
    read_journal,
    write_journal,
)
from appliance.releases.layout import Layout, Release
from appliance.releases.manager import Manager

log = logging.getLogger(__name__)

Say = Callable[[str], None]
# Holds the exclusive lock of a data directory, given its lock file; raises when it is taken.
Lock = Callable[[Path], AbstractContextManager[None]]
# Asks the running service about itself. Raises ApplianceError while it does not answer.
Ask = Callable[[], "ServiceState"]

OPEN_SECONDS = 60.0
CHECK_SECONDS = 600.0
LOOK_EVERY_SECONDS = 0.2
# How long a start waits for the one who switches.
LONGEST_WAIT_SECONDS = 3600.0


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """What a service says of itself. ``tree`` is where its program lies; ``broken`` names models."""

    version: str
    tree: str
    closed: bool
    loading: int
    broken: list[str]


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """The box that is switched. ``configuration`` is the file of its settings, if there is one."""

    layout: Layout
    data_dir: Path
    lock_file: Path
    configuration: Path | None
    manager: Manager
    ask: Ask
    lock: Lock
    say: Say

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the lock of whoever switches. Raises ReleaseError."""
        group = self.data_dir.stat().st_gid if self.data_dir.is_dir() else None
        with driving(self.layout.lock_path, group):
            yield


def switch(
    box: Box, kind: str, before: Release, after: Release, accept: Callable[[], None] = lambda: None
) -> None:
    """Run ``after`` in place of ``before``; the caller drives. ``accept`` is called before it opens for writes.

    When this returns the new release works and takes writes. When it raises ReleaseError, whose text says why,
    the old one runs again. When the process dies at any instant, ``resume`` leads to one of the two.
    """
    try:
        broken_before = set(box.ask().broken)
    except ApplianceError:
        broken_before = None  # it does not run: nothing to compare with
    journal = Journal(
        kind="rollback" if kind == "rollback" else "upgrade",
        phase="begun",
        before=before.name,
        after=after.name,
        data_dir=str(box.data_dir),
        snapshot=snapshot.new_name(snapshot.SNAPSHOT),
        began=now_ms(),
    )
    write_journal(box.layout.journal_path, journal)
    try:
        box.say("Stopping the service; connections wait.")
        box.manager.stop()
        with acting_as_owner(box.data_dir), box.lock(box.lock_file):
            snapshot.require_room(box.data_dir, 2)
            snapshot.take(box.data_dir, journal.snapshot)
        kept = configuration.keep(box.layout.root, box.configuration)
        journal = _into(box, msgspec.structs.replace(journal, configuration=kept), "switching")
        box.layout.point(box.layout.current_link, after)
        journal = _into(box, journal, "trial")
        box.say(f"Starting {after}, closed for writes.")
        box.manager.start()
        _check(box, after, broken_before)
        # Not earlier: a release that did not work here must not make the one that runs an old one.
        accept()
    except BaseException as error:
        reason = _words(error)
        _return(box, journal, reason)
        if not isinstance(error, ApplianceError | OSError):
            raise
        raise ReleaseError(
            f"{after} did not work here: {reason}\n{before} runs again; nothing was lost"
        ) from error
    journal = _into(box, journal, "opened")
    try:
        _require_open(box, after)
    except (ApplianceError, OSError) as error:
        _leave_opened(box, journal, before, after, _words(error))
    _finish(box, journal)
    if kind == "rollback":
        box.say(
            f"{after} works and takes writes. {before} is taken into use again by its file: appliance upgrade FILE"
        )
    else:
        box.say(f"{after} works and takes writes. The way back: appliance rollback")


def resume(box: Box) -> str:
    """Finish or undo what was interrupted, before the service starts; return what was done, in words.

    While somebody switches, wait until the service may start. Nothing is started or stopped here.
    """
    give_up = time.monotonic() + LONGEST_WAIT_SECONDS
    while True:
        journal = read_journal(box.layout.journal_path)
        if journal is None or journal.phase == "done":
            _clear_copies(box)
            return ""
        if is_driven(box.layout.lock_path):
            if journal.phase not in BUSY or time.monotonic() > give_up:
                return ""
            time.sleep(LOOK_EVERY_SECONDS)
            continue
        with box.driving():
            return settle(box)


def _clear_copies(box: Box) -> None:
    """Remove what an upgrade left that was cut off before it switched: a pack that was tried may be gigabytes."""
    if not box.layout.releases.is_dir() or not box.data_dir.is_dir():
        return
    with _tidying():
        if not is_driven(box.layout.lock_path):
            with box.driving(), acting_as_owner(box.data_dir):
                snapshot.clear(box.data_dir)


def recover(box: Box) -> None:
    """Finish or undo an interrupted switch before a new one begins; the caller drives. Raises ReleaseError."""
    journal = read_journal(box.layout.journal_path)
    if journal is None or journal.phase == "done":
        return
    with _started_in_the_end(box):
        box.manager.stop()
        box.say(settle(box))
        box.manager.start()


def settle(box: Box) -> str:
    """Do what ``resume`` does, for the one who drives; the service must not run. Raises ReleaseError, OSError."""
    journal = read_journal(box.layout.journal_path)
    if journal is None or journal.phase == "done":
        return ""
    if journal.phase == "opened":
        _finish(box, journal)
        return f"the {journal.kind} to {journal.after} was interrupted at its very end, and is finished"
    reason = f"the {journal.kind} to {journal.after} was interrupted"
    _back(box, journal, reason)
    return f"{reason}: {journal.before} goes on, and nothing was lost"


def _into(box: Box, journal: Journal, phase: Phase) -> Journal:
    changed = journal.into(phase)
    write_journal(box.layout.journal_path, changed)
    return changed


def _check(box: Box, after: Release, broken_before: set[str] | None) -> None:
    """Raise ReleaseError unless the running service is the new release, closed, and has all models that worked."""
    give_up = time.monotonic() + CHECK_SECONDS
    while True:
        try:
            state = box.ask()
        except ApplianceError as error:
            if time.monotonic() > give_up or not box.manager.running():
                raise ReleaseError(f"the service does not answer: {error.message}") from error
        else:
            if Path(state.tree).resolve() != after.directory.resolve():
                raise ReleaseError(f"another program than {after} answers: {state.tree}")
            if not state.closed:
                raise ReleaseError("it takes writes before it has shown that it works")
            if not state.loading:
                break
            if time.monotonic() > give_up:
                raise ReleaseError(f"{state.loading} models are not loaded after {CHECK_SECONDS:.0f} s")
        time.sleep(LOOK_EVERY_SECONDS)
    new = set(state.broken) - broken_before if broken_before is not None else set()
    if new:
        raise ReleaseError(f"it cannot load {', '.join(sorted(new))}, which the release before could")


def _require_open(box: Box, after: Release) -> None:
    give_up = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            if not box.ask().closed:
                return
            problem = "it does not open for writes"
        except ApplianceError as error:
            problem = error.message
        if time.monotonic() > give_up or not box.manager.running():
            raise ReleaseError(f"{after} works no more: {problem}")
        time.sleep(LOOK_EVERY_SECONDS)


def _leave_opened(box: Box, journal: Journal, before: Release, after: Release, reason: str) -> None:
    """Go back after writes were taken: they are kept. Raises ReleaseError, always."""
    oldest = snapshot.oldest_reader_of(box.data_dir)
    if oldest > before.manifest.schema_version:
        _finish(box, journal)
        raise ReleaseError(
            f"{reason}. It has taken writes, in a store that {before} cannot open, so the box stays with {after}: see "
            "journalctl -u appliance.service"
        )
    returning = msgspec.structs.replace(journal, phase="returning", keep_store=True)
    write_journal(box.layout.journal_path, returning)
    _return(box, returning, reason)
    raise ReleaseError(
        f"{after} did not work here: {reason}\n{before} runs again, with all that was written since"
    )


def _return(box: Box, journal: Journal, reason: str) -> None:
    """Go back to the old release and start it."""
    with _started_in_the_end(box):
        if journal.phase != "begun":
            journal = msgspec.structs.replace(journal, phase="returning")
            write_journal(box.layout.journal_path, journal)
        box.say(f"Going back to {journal.before}: {reason}")
        if journal.phase != "begun":
            box.manager.stop()
        _back(box, journal, reason)
        box.manager.start()


@contextlib.contextmanager
def _started_in_the_end(box: Box) -> Iterator[None]:
    """Where the way back cannot be gone to its end (the disk is full), leave that to the next start, which comes.

    Also where units could not be put back for that start: those that are there serve as well.
    """
    try:
        yield
    except BaseException:
        box.manager.start_later()
        raise


def _back(box: Box, journal: Journal, reason: str) -> None:
    """Put things as they were; may be interrupted and done again."""
    before = box.layout.get(journal.before)
    if journal.phase == "begun" or journal.keep_store:
        configuration.clear(box.layout.root)
    if journal.phase != "begun":
        if journal.phase != "returning":
            journal = _into(box, journal, "returning")
        if not journal.keep_store:
            with acting_as_owner(box.data_dir), box.lock(box.lock_file):
                other = snapshot.put_back(box.data_dir, journal.snapshot)
            if other:
                box.say(f"These packs had changed, and are as before: {', '.join(other)}")
            _configuration_back(box, journal)
        box.layout.point(box.layout.current_link, before)
        box.layout.point(box.layout.keeper_link, before)
    done = journal.into(
        "done", outcome=f"came back to {journal.before}: {reason}", keep_store=journal.keep_store
    )
    write_journal(box.layout.journal_path, done)
    with _tidying(), acting_as_owner(box.data_dir):
        snapshot.clear(box.data_dir)
    with _tidying():
        # A release that did not work is no release to go back to, or to try again without its bundle.
        after = Path(journal.after).name
        for release in box.layout.all():
            if release.name == after and journal.kind == "upgrade":
                box.layout.remove(release)
        box.layout.sweep()


def _configuration_back(box: Box, journal: Journal) -> None:
    """Put the configuration back. Where that cannot be the box comes back all the same: its copy stays for people."""
    try:
        aside = configuration.put_back(box.layout.root, journal.configuration, f"of-{journal.after}")
    except OSError as error:
        log.error(  # noqa: TRY400 - the text says it all
            "%s cannot be put back (%s): it is kept as %s",
            journal.configuration,
            error.strerror or error,
            box.layout.root / configuration.KEPT,
        )
        return
    if aside is not None:
        box.say(f"{journal.configuration} had changed, and is as before; what was in it is in {aside}")
    configuration.clear(box.layout.root)


def _finish(box: Box, journal: Journal) -> None:
    """Clear up after a switch that went well; may be interrupted and done again."""
    after = box.layout.get(journal.after)
    box.layout.point(box.layout.current_link, after)
    box.layout.point(box.layout.keeper_link, after)
    write_journal(box.layout.journal_path, journal.into("done", outcome=f"{journal.after} works", well=True))
    with _tidying(), acting_as_owner(box.data_dir):
        snapshot.clear(box.data_dir)
    with _tidying():
        configuration.clear(box.layout.root)
        box.layout.keep(after, box.layout.get(journal.before))


@contextlib.contextmanager
def _tidying() -> Iterator[None]:
    """What cannot be removed now is removed the next time; it is no reason to fail."""
    try:
        yield
    except (ApplianceError, OSError) as error:
        log.warning("clearing up after the switch: %s", error)


def _words(error: BaseException) -> str:
    if isinstance(error, ApplianceError):
        return error.message
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    return type(error).__name__
