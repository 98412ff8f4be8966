"""The builder's cache: sources by hash, finished packs by recipe hash.

``$XDG_CACHE_HOME/appliance`` (or ``~/.cache/appliance``) holds ``sources/<sha256>/<file>`` and
``packs/<name>-<recipe hash, 16 digits>/``. A pack appears there by one rename, whole and synced.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.packs.errors import PackError
from appliance.packs.manifest import MANIFEST_NAME, Manifest, read_manifest
from model_packs.fetch import file_sha256


def default_cache() -> Path:
    """Return the user's cache folder for the builder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative values.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "appliance"


def whole_pack(directory: Path, recipe_hash: str, *, verify: bool = False) -> Manifest | None:
    """Return the manifest of ``directory`` if it is that recipe's pack with every file of its right size.

    ``verify`` also compares the hashes. None means: not there, or not whole.
    """
    if not (directory / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(directory)
    except PackError:
        return None
    if manifest.recipe_sha256 != recipe_hash:
        return None
    for file in manifest.file:
        path = directory / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return None
        if verify and file_sha256(path) != file.sha256:
            return None
    return manifest


def sync(path: Path) -> None:
    """Make what is at ``path`` (a file or a folder's entries) durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make every file and folder under ``directory``, and itself, durable."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if absent); waits for another builder to finish."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prune(kept: Path, name: str) -> None:
    """Delete the other cached packs of ``name``, those that a builder is at work on excepted.

    Installed packs are links to the same files, or copies, and keep them.
    """
    for directory in sorted(kept.parent.iterdir()):
        if directory == kept or not re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}", directory.name):
            continue
        # The lock's file stays: whoever waits on it must meet the same file as whoever comes later.
        try:
            with directory.with_name(f".{directory.name}.lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except (BlockingIOError, PermissionError):
            continue  # another builder's, or another user's


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield ``folder``, empty, and delete it afterwards; also sweeps what a killed builder left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_pack(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends without an error.

    The caller holds the lock of ``target``, so a leftover of an earlier, killed builder is swept.
    """
    with scratch(target.with_name(f".{target.name}.tmp")) as staging:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                path.chmod(0o444)  # installed packs are hard links to these files
        sync_tree(staging)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
        sync(target.parent)
