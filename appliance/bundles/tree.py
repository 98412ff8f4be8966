"""A folder as a bundle lists it: to make one of it, and to check one that was unpacked by other means."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from appliance.bundles.errors import BundleError
from appliance.bundles.manifest import BundleManifest, Entry, Mode, check_entries, order
from appliance.packs.errors import PackError
from appliance.packs.staging import open_plain

CHUNK = 1 << 20


def list_tree(root: Path) -> tuple[Entry, ...]:
    """Return every file and link below ``root``, in the order of a bundle; empty folders do not count.

    Modes are 0755 for what its owner may execute, else 0644. Raises BundleError for what no bundle may
    hold: devices, links that leave the folder, names that are not plain.
    """
    entries = [_entry(root, path) for path in _walk(root)]
    listed = tuple(sorted(entries, key=lambda entry: order(entry.path)))
    check_entries(listed)
    return listed


def check_tree(manifest: BundleManifest, root: Path) -> None:
    """Raise BundleError unless the folder holds exactly what the manifest lists, byte for byte.

    This is how a tree that the essential tools unpacked comes to be as good as the signed bundle.
    """
    found = {entry.path: entry for entry in list_tree(root)}
    for entry in manifest.files:
        there = found.pop(entry.path, None)
        if there is None:
            raise BundleError(f"{root} lacks {entry.path}, which the signed bundle lists")
        if there != entry:
            raise BundleError(f"{root / entry.path} is not the file that the signed bundle lists")
    if found:
        raise BundleError(f"{root} holds {min(found)!r:.200}, which the signed bundle does not list")


def _walk(root: Path) -> list[str]:
    paths: list[str] = []

    def refuse(error: OSError) -> None:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        paths += [(Path(folder) / name).relative_to(root).as_posix() for name in files + links]
    return paths


def _entry(root: Path, path: str) -> Entry:
    try:
        full = root / path
        status = full.lstat()
        if stat.S_ISLNK(status.st_mode):
            return Entry(path=path, link=str(full.readlink()))
        digest, size = hashlib.sha256(), 0
        with open_plain(full) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except PackError as error:
        raise BundleError(error.message) from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    mode: Mode = "0755" if status.st_mode & stat.S_IXUSR else "0644"
    return Entry(path=path, size=size, sha256=digest.hexdigest(), mode=mode)
