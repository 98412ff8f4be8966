"""All installed packs by second names, as they are now, and back again: for what may change them and be undone.

Files of packs are never written in place, so a second name costs no room and stays as it was. The versions of before
that the store keeps are taken along.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from appliance.disk import copy_by_names, drop, replace, sync_directory
from appliance.packs.lock import hold
from appliance.packs.meter import Meter
from appliance.packs.store import KEPT_VERSIONS, LOCK


def copy_packs(packs_dir: Path, target: Path) -> None:
    """Make ``target``, and in it every pack of the store in ``packs_dir``. Raises OSError, PackError."""
    target.mkdir(mode=0o700)
    if not packs_dir.is_dir():
        return
    with hold(packs_dir / LOCK, Meter()):
        for pack in _packs(packs_dir):
            copy_by_names(pack, target / pack.name)
        sync_directory(target)


def put_packs_back(packs_dir: Path, kept: Path) -> list[str]:
    """Make the store hold what ``kept`` holds, and nothing else; return the names that were not the same.

    Where there is no ``kept`` nothing is known of the packs of then, and nothing is done. May be interrupted at any
    instant and done again. Raises OSError, PackError.
    """
    if not kept.is_dir():
        return []
    packs_dir.mkdir(exist_ok=True)
    changed = []
    with hold(packs_dir / LOCK, Meter()):
        wanted = {pack.name: pack for pack in _packs(kept)}
        for name, pack in wanted.items():
            target = packs_dir / name
            if target.is_dir() and _files(target) == _files(pack):
                continue
            staging = packs_dir / f".staging-{secrets.token_hex(8)}"
            copy_by_names(pack, staging)
            replace(staging, target, packs_dir / f".old-{name}")
            changed.append(name)
        for pack in _packs(packs_dir):
            if pack.name not in wanted:
                drop(pack)
                changed.append(pack.name)
    return sorted(changed)


def _packs(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path.name[0] != "." or path.name.startswith(KEPT_VERSIONS)):
            yield path


def _files(pack: Path) -> dict[str, tuple[int, int]]:
    """Return which file is behind each name: one that was replaced is another."""
    found = {}
    for folder, _, names in os.walk(pack.resolve()):
        for name in names:
            path = Path(folder, name)
            status = path.stat()
            found[str(path.relative_to(pack.resolve()))] = (status.st_dev, status.st_ino)
    return found
