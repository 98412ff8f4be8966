"""Files that root brings, where the service can read them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.backup.swap import acting_as_owner
from appliance.config import Settings
from appliance.control.errors import ControlError
from appliance.signing.signatures import signature_path

# What the service's unit leaves visible; home directories and /tmp it does not see.
_VISIBLE = ("/media", "/mnt", "/opt", "/srv")


@contextmanager
def keeping_user() -> Iterator[None]:
    """Be the same user afterwards: a command that root runs without the service goes on as the store's owner."""
    user, group = os.geteuid(), os.getegid()
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)


@contextmanager
def reachable(settings: Settings, source: str) -> Iterator[str]:
    """Give a path under which the service's user finds the file ``source`` and its signature.

    The service runs as its own user in a sandbox: what root names in a home directory is copied into its
    spool meanwhile. URLs, directories and everything that is no matter for root pass through. Raises
    ControlError when there is no room for the copy.
    """
    path = Path(source)
    if "://" in source or os.geteuid() != 0 or not settings.data_dir.is_dir() or not path.is_file():
        yield source
        return
    owner = settings.data_dir.stat()
    if owner.st_uid == 0 or (str(path.resolve()).startswith(_VISIBLE) and _readable(path, owner)):
        yield source
        return
    # As the service's user from the first byte: root must not follow names of the service's, and what is cut off
    # halfway must be the service's to clear away.
    with acting_as_owner(settings.data_dir):
        settings.spool_dir.mkdir(mode=0o700, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="import-", dir=settings.spool_dir)
    with made as folder:
        target = Path(folder) / path.name
        try:
            for one in (path, signature_path(path)):
                if one.is_file():
                    with (
                        one.open("rb") as file,
                        acting_as_owner(settings.data_dir),
                        (Path(folder) / one.name).open("xb") as copy,
                    ):
                        shutil.copyfileobj(file, copy, 1 << 20)
        except OSError as error:
            raise ControlError(
                f"cannot copy {path} to where the service can read it: {error.strerror}"
            ) from error
        yield str(target)


def _readable(path: Path, owner: os.stat_result) -> bool:
    """Tell whether the service's user may read a file and its signature."""
    group, user = os.getegid(), os.geteuid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        beside = signature_path(path)
        return os.access(path, os.R_OK, effective_ids=True) and (
            not beside.exists() or os.access(beside, os.R_OK, effective_ids=True)
        )
    except OSError:
        return False
    finally:
        os.seteuid(user)
        os.setegid(group)
