"""Reads bundles: one Zstandard frame around a ustar archive, ``MANIFEST.json`` first, then its files in order.

Verify before parse, parse before extract: the signature was checked over the whole file before anything
here runs (``signing.verification``). A second read could meet other bytes, on a stick that somebody else
holds: every byte is hashed again on the way, and the end is only reached when they are the verified ones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from appliance.bundles.errors import BundleError, BundleSpaceError
from appliance.bundles.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    BundleManifest,
    Entry,
    parse_manifest,
)
from appliance.disk import free_bytes, sync_directory, write_new
from appliance.packs.errors import PackCancelledError, PackError
from appliance.packs.frame import FrameReader
from appliance.packs.meter import Progress
from appliance.packs.staging import open_plain
from appliance.packs.tar import BLOCK, END, MAX_END, Member, padding, read_header
from appliance.signing.trust import Verified

CHUNK = 1 << 20
# Left free for the stores when a release is staged.
RESERVE_BYTES = 256 << 20
_BLOCK_ON_DISK = 4096


class HashedFile:
    """A file whose bytes are hashed while they are read once, from first to last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.blake2b()
        self._size = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        data = self._file.read(size)
        self._digest.update(data)
        self._size += len(data)
        return data

    def compare(self, verified: Verified | None) -> None:
        """Raise BundleError unless what was read is what was verified (None: nothing was)."""
        if verified is not None and (self._size, self._digest.digest()) != (verified.size, verified.digest):
            raise BundleError("the file changed while it was read: nothing of it was used; copy it again")


def read_bundle_manifest(path: Path, verified: Verified | None) -> BundleManifest:
    """Return the manifest of a bundle without reading the rest.

    It is compared with ``verified``, which its caller got from the whole file. Raises BundleError.
    """
    with _opened(path) as (_, frame):
        return read_manifest_member(frame, frame.read(BLOCK), verified)


def check_bundle(path: Path, verified: Verified | None, progress: Progress | None = None) -> BundleManifest:
    """Read a bundle from its first to its last byte without extracting it. Raises BundleError."""

    def discard(_entry: Entry, chunks: Iterator[bytes]) -> None:
        for _ in chunks:
            pass

    with _opened(path) as (file, frame):
        manifest = read_manifest_member(frame, frame.read(BLOCK), verified)
        _read_files(frame, manifest, discard, progress)
        file.compare(verified)
    return manifest


def stage(
    path: Path, verified: Verified, directory: Path, progress: Progress | None = None
) -> BundleManifest:
    """Extract a verified system bundle into ``directory``, which must not exist, and put it on disk.

    Exactly the listed files and links are there when this returns, with their modes, folders 0755, all
    of this process's user. When it raises (BundleError; what ``progress`` raises) the directory is gone;
    after a crash a part of it may be left, for the caller to remove.
    """
    with _opened(path) as (file, frame):
        manifest = read_manifest_member(frame, frame.read(BLOCK), verified)
        _check_room(manifest, directory.parent)
        made = False
        try:
            extraction = Extraction(directory)
            made = True
            _read_files(frame, manifest, extraction.write, progress)
            file.compare(verified)
            extraction.sync()
        except BaseException as error:
            if made:
                shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, OSError):
                raise BundleError(f"cannot unpack {path.name}: {error.strerror or error}") from error
            raise
    return manifest


class Extraction:
    """Writes the files of a bundle below a new directory. Nothing that is there is ever written over."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)  # whatever the umask is: the service's user has to read it
        self._directory = directory
        self._folders = {directory}

    def write(self, entry: Entry, chunks: Iterator[bytes]) -> None:
        """Write one file or link and put it on disk. Raises OSError, and what ``chunks`` raise."""
        target = self._directory / entry.path
        self._make(target.parent)
        if entry.target is not None:
            target.symlink_to(entry.target)
            return
        write_new(target, chunks, 0o600, exactly=entry.permissions)

    def sync(self) -> None:
        """Put all names on disk."""
        for folder in (*self._folders, self._directory.parent):
            sync_directory(folder)

    def _make(self, folder: Path) -> None:
        if folder in self._folders:
            return
        self._make(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)
        self._folders.add(folder)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[HashedFile, FrameReader]]:
    """Open a bundle; what the rooms below call an error of a pack is one of a bundle here."""
    try:
        with open_plain(path) as opened:
            file = HashedFile(opened)
            frame = FrameReader(file)
            frame.manifest = MANIFEST_NAME
            yield file, frame
    except PackCancelledError:
        raise
    except PackError as error:
        raise BundleError(f"{path.name}: {error.message}") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error


def read_manifest_member(frame: FrameReader, first: bytes, verified: Verified | None) -> BundleManifest:
    """Read the manifest, whose header is ``first``, and hold it against what the signature says."""
    header = read_header(first)
    if header is None or header.path != MANIFEST_NAME:
        raise BundleError(f"not a bundle: its first file is not {MANIFEST_NAME}")
    if header.size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest = parse_manifest(frame.read(header.size))
    if any(frame.read(padding(header.size))):
        raise BundleError(f"{MANIFEST_NAME} is followed by something else than zeros")
    if verified is not None:
        said = (verified.kind, verified.name, verified.sequence)
        if said != (manifest.kind, manifest.name, manifest.sequence):
            raise BundleError(
                f"the signature is of {said[1]} number {said[2]} ({said[0]}), but the bundle says that it is "
                f"{manifest.name} number {manifest.sequence} ({manifest.kind})"
            )
    return manifest


def _read_files(
    frame: FrameReader,
    manifest: BundleManifest,
    write: Callable[[Entry, Iterator[bytes]], None],
    progress: Progress | None,
) -> None:
    """Hand every file to ``write``: in the manifest's order, with its size, mode and SHA-256, and no other."""
    total, done = manifest.unpacked_bytes, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for entry in manifest.files:
        check_header(read_header(frame.read(BLOCK), links=True), entry)
        write(entry, contents(frame, entry, advance))
        if any(frame.read(padding(entry.length))):
            raise BundleError(f"{entry.path} is followed by something else than zeros")
    finish(frame)


def contents(frame: FrameReader, entry: Entry, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the bytes of one file; after the last one raise BundleError unless they were the listed ones."""
    digest = hashlib.sha256()
    left = entry.length
    while left:
        chunk = frame.read(min(left, CHUNK))
        digest.update(chunk)
        left -= len(chunk)
        advance(len(chunk))
        yield chunk
    if entry.target is None and digest.hexdigest() != entry.sha256:
        raise BundleError(f"{entry.path} is damaged: its SHA-256 is not the one in {MANIFEST_NAME}")


def finish(frame: FrameReader) -> None:
    """Read the end mark. Raises BundleError when there is more than the manifest lists."""
    rest = frame.read_rest(MAX_END)
    if len(rest) < len(END) or any(rest):
        raise BundleError(f"the bundle holds more than its {MANIFEST_NAME} lists, or has no end mark")


def check_header(member: Member | None, entry: Entry) -> None:
    """Raise BundleError unless a tar header is exactly what the manifest lists."""
    if member is None:
        raise BundleError(f"the bundle lacks {entry.path}")
    if member.path != entry.path:
        raise BundleError(
            f"the bundle holds {member.path!r:.200} where its {MANIFEST_NAME} lists {entry.path!r:.200}"
        )
    if member.link != entry.target:
        raise BundleError(f"{entry.path} is a link, or leads elsewhere than {MANIFEST_NAME} says")
    if member.size != entry.length:
        raise BundleError(
            f"{entry.path} has {member.size} bytes instead of the {entry.length} that are listed"
        )
    if member.mode != entry.permissions:
        raise BundleError(f"{entry.path} has mode {member.mode:04o} instead of {entry.permissions:04o}")


def _check_room(manifest: BundleManifest, folder: Path) -> None:
    needed = RESERVE_BYTES + sum(
        -(-entry.length // _BLOCK_ON_DISK) * _BLOCK_ON_DISK for entry in manifest.files
    )
    free = free_bytes(folder)
    if free < needed:
        raise BundleSpaceError(
            f"{manifest.name} {manifest.version} needs {needed >> 20} MiB free on the disk of {folder} "
            f"(with {RESERVE_BYTES >> 20} MiB to spare); {free >> 20} MiB are free"
        )
