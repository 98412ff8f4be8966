"""The configuration as it was before a switch: a copy in root's own folder, and back again.

Not in the data directory, where the other copies are: what the service's user may write must never become the
configuration, which is root's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.disk import write_whole

KEPT = "configuration-before"


def keep(root: Path, configuration: Path | None) -> str:
    """Copy the file ``configuration`` into the folder ``root``; on disk when this returns.

    Returns where it belongs, for ``put_back``; "" when there is none. Raises OSError.
    """
    if configuration is None or not configuration.is_file():
        return ""
    place = configuration.resolve()
    _write(root / KEPT, place.read_bytes(), place.stat())
    return str(place)


def put_back(root: Path, place: str, beside: str) -> Path | None:
    """Make the file at ``place`` what it was, contents, mode and owner; once more is harmless.

    What was there meanwhile is kept as ``PLACE.BESIDE``, whose path is returned; None when nothing had changed.
    Raises OSError.
    """
    kept, target = root / KEPT, Path(place)
    if not place or not kept.exists():
        return None
    wanted, status = kept.read_bytes(), kept.stat()
    if not target.exists():
        _write(target, wanted, status)
        return None
    if target.read_bytes() == wanted and _rights(target.stat()) == _rights(status):
        return None
    aside = target.with_name(f"{target.name}.{beside}")
    _write(aside, target.read_bytes(), target.stat())
    _write(target, wanted, status)
    return aside


def clear(root: Path) -> None:
    """Remove the copy: the switch is over."""
    (root / KEPT).unlink(missing_ok=True)


def _rights(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _write(path: Path, data: bytes, like: os.stat_result) -> None:
    write_whole(path, data, stat.S_IMODE(like.st_mode))
    if os.geteuid() == 0:
        os.chown(path, like.st_uid, like.st_gid, follow_symlinks=False)
