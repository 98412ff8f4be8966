"""Remembers which files were hashed, so that a start does not read gigabytes that did not change.

A file counts as unchanged while device, inode, size, modification and change time are the same.
That tells an edit, not a failing disk: ``PackStore.verify`` reads everything unless told otherwise.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

Fingerprint = tuple[int, int, int, int, int]
_Entries = dict[str, tuple[Fingerprint, str]]


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return what identifies a file's present contents without reading them."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class HashCache:
    """The hashes of one store's files, in one JSON file. A cache that cannot be read is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            self._entries = msgspec.json.decode(path.read_bytes(), type=_Entries)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._entries = {}

    def holds(self, path: str, status: os.stat_result, sha256: str) -> bool:
        """Tell whether ``path`` was hashed in its present state and had this SHA-256."""
        return self._entries.get(path) == (fingerprint(status), sha256)

    def add(self, path: str, status: os.stat_result, sha256: str) -> None:
        """Note the SHA-256 of ``path``, which had ``status`` before it was read."""
        self._entries[path] = (fingerprint(status), sha256)
        self._changed = True

    def save(self, packs: set[str]) -> None:
        """Write what was added, and the older entries of the given packs.

        Failing costs only time at the next start.
        """
        if not self._changed:
            return
        kept = {path: entry for path, entry in self._entries.items() if path.split("/", 1)[0] in packs}
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            if self._path.parent.stat().st_uid != os.geteuid():
                return  # root looks into the service's store: leave no file of another owner there
            temporary.write_bytes(msgspec.json.encode(kept))
            temporary.replace(self._path)
