"""Where the files of a pack go while they are checked: into a hidden directory, or nowhere."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from appliance.disk import sync_directory, write_new
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest, PackFile

CHUNK = 1 << 20


class Sink(Protocol):
    """Takes in the files of a pack, one after the other."""

    def admit(self, manifest: Manifest) -> None:
        """See the manifest before any file; raise PackError to refuse the pack."""
        ...

    def write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Take one file, whose ``path`` the manifest lists. An error in ``chunks`` passes through."""
        ...


class Discard:
    """The sink that only counts the manifest in: for checking a pack without installing it."""

    def __init__(self, admit: Callable[[Manifest], None]) -> None:
        self.admit = admit

    def write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Read the file to its end."""
        for _ in chunks:
            pass


class Staging:
    """The sink that writes a pack into ``directory``, which must not exist yet."""

    def __init__(self, directory: Path, admit: Callable[[Manifest], None]) -> None:
        self.directory = directory
        self.admit = admit
        self._folders = {directory}
        directory.mkdir()

    def write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Write one file and put it on disk."""
        target = self.directory / path
        if target.parent not in self._folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            for folder in target.parents:
                if folder in self._folders:
                    break
                self._folders.add(folder)
        write_new(target, chunks, 0o644)

    def sync(self) -> None:
        """Put the names of all files on disk."""
        for folder in self._folders:
            sync_directory(folder)


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises PackError for anything else, instead of waiting for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PackError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_chunks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes in chunks. ``read`` must return something until then."""
    while size > 0:
        chunk = read(min(size, CHUNK))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def checked(file: PackFile, chunks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    """Pass ``chunks`` on; after the last one raise PackError unless they were what the manifest says."""
    digest = hashlib.sha256()
    size = 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        advance(len(chunk))
        yield chunk
    if size != file.size:
        raise PackError(f"{file.path} has {size} bytes instead of the {file.size} that pack.toml lists")
    if digest.hexdigest() != file.sha256:
        raise PackError(f"{file.path} is damaged: its SHA-256 is not the one in pack.toml")
