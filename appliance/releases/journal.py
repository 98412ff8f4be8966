"""``upgrade.json``: how far a switch of releases has come. Durable, and readable to both releases.

Every phase says what the next start has to do when the switch was interrupted in it:

- ``begun``: nothing was changed; the old release goes on.
- ``switching``, ``trial``: ``current`` may lead to the new release and the store may be migrated, but no
  write was acknowledged; back to the old release, with the snapshot.
- ``returning``: the same, decided; with the snapshot unless ``keep_store``.
- ``opened``: the new release works and takes writes; what is left is to clear up.
- ``done``: nothing is to be done; ``outcome`` tells people how it went.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from appliance.disk import write_whole
from appliance.releases.errors import ReleaseError

Phase = Literal["begun", "switching", "trial", "returning", "opened", "done"]
# In these the service must not start: the one who switches is at work on its data.
BUSY: tuple[Phase, ...] = ("begun", "switching", "returning")
LOCK_WAIT_SECONDS = 5.0


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """One switch. ``before`` and ``after`` name releases, ``snapshot`` a folder in ``data_dir``.

    ``configuration`` is the file whose copy belongs to the snapshot, "" without one.
    ``began`` is in UTC milliseconds. Releases of different versions read it: fields are only added.
    """

    schema: int = 1
    kind: Literal["upgrade", "rollback"]
    phase: Phase
    before: str
    after: str
    data_dir: str
    snapshot: str
    began: int
    configuration: str = ""
    keep_store: bool = False
    outcome: str = ""
    well: bool = False

    def into(
        self, phase: Phase, *, outcome: str = "", well: bool = False, keep_store: bool = False
    ) -> Journal:
        """Return this journal in another phase."""
        return msgspec.structs.replace(self, phase=phase, outcome=outcome, well=well, keep_store=keep_store)


def read_journal(path: Path) -> Journal | None:
    """Return the last switch, None when there never was one. Raises ReleaseError when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{path} cannot be read: {error}", status=500) from error


def write_journal(path: Path, journal: Journal) -> None:
    """Put the journal on disk; when this returns it is there."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(journal), indent=1) + b"\n", 0o644)


@contextmanager
def driving(path: Path, group: int | None = None) -> Iterator[None]:
    """Hold the lock of whoever switches; the kernel frees it when this process ends.

    ``group`` may look whether it is held. Raises ReleaseError when somebody else switches.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise ReleaseError(f"cannot lock {path}: {error.strerror}; run this as root") from error
    try:
        os.fchmod(descriptor, 0o640)
        if group is not None and os.geteuid() == 0:
            os.fchown(descriptor, 0, group)
        give_up = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # The service looks for an instant now and then.
                if time.monotonic() > give_up:
                    raise ReleaseError("another upgrade or rollback is going on") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def is_driven(path: Path) -> bool:
    """Tell whether somebody switches right now. Raises OSError when this user may not look."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
