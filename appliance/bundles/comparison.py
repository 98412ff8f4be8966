"""What differs between two packs or system bundles, by what their manifests list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from appliance.bundles.manifest import BundleManifest
from appliance.bundles.packs import look
from appliance.bundles.tree import list_tree
from appliance.packs.manifest import MANIFEST_NAME as PACK_MANIFEST
from appliance.packs.manifest import read_manifest
from appliance.signing.trust import Verified


class Contents(msgspec.Struct, frozen=True):
    """A title, and of every file its size in bytes and what identifies its contents."""

    title: str
    files: dict[str, tuple[int, str]]


def contents_of_file(path: Path, verified: Verified | None) -> Contents:
    """Return what a bundle or plain archive lists. Raises PackError, BundleError."""
    manifest = look(path, verified)
    if isinstance(manifest, BundleManifest):
        title = f"{manifest.name} {manifest.version} number {manifest.sequence}"
        files = {
            entry.path: (entry.length, f"{entry.target or entry.sha256} {entry.mode}")
            for entry in manifest.files
        }
        return Contents(title, files)
    # A plain archive's own manifest is not in its list.
    files = {entry.path: (entry.size, f"{entry.sha256} 0644") for entry in manifest.file}
    return Contents(f"{manifest.name} {manifest.version}", files)


def contents_of_directory(directory: Path) -> Contents:
    """Return what lies in an unpacked pack or release. Raises BundleError, PackError."""
    title = str(directory)
    pack = (directory / PACK_MANIFEST).is_file()
    if pack:
        manifest = read_manifest(directory)
        title = f"{manifest.name} {manifest.version}"
    files = {}
    for entry in list_tree(directory):
        mode = "0644" if pack else entry.mode
        files[entry.path] = (entry.length, f"{entry.target or entry.sha256} {mode}")
    return Contents(title, files)


def compare(before: Contents, after: Contents) -> dict[str, Any]:
    """Return the difference as JSON-able values; sizes are bytes."""
    difference: dict[str, Any] = {"added": [], "changed": [], "gone": [], "same": 0}
    for path in sorted(before.files.keys() | after.files.keys()):
        old, new = before.files.get(path), after.files.get(path)
        if old == new:
            difference["same"] += 1
            continue
        word = "added" if old is None else "gone" if new is None else "changed"
        difference[word].append({"path": path, "before": old and old[0], "after": new and new[0]})
    difference["bytes_before"] = sum(size for size, _ in before.files.values())
    difference["bytes_after"] = sum(size for size, _ in after.files.values())
    return difference
