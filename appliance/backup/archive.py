"""The file of a backup: a Zstandard frame around a ustar archive, ``MANIFEST.json`` first; encrypted as age does."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import zstandard

from appliance.backup import manifest as manifests
from appliance.backup.encryption import VERSION, DecryptingReader, EncryptingWriter, Sink
from appliance.backup.errors import BackupError
from appliance.backup.keys import Identity, Recipient
from appliance.backup.manifest import BackupFile, BackupManifest
from appliance.packs.errors import PackError
from appliance.packs.frame import FrameReader
from appliance.packs.tar import END, MAX_END, Member, padding, read_header, write_header

CHUNK = 1 << 20
LEVEL = 3

# Takes a file of a backup, whose contents are checked behind the last chunk.
Taker = Callable[[BackupFile, Iterator[bytes]], None]


def describe(folder: Path, path: str) -> BackupFile:
    """Return a file of ``folder`` as the manifest lists it."""
    digest, size = hashlib.sha256(), 0
    with (folder / path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return BackupFile(path=path, size=size, sha256=digest.hexdigest())


def write_archive(
    folder: Path, manifest: BackupManifest, target: Path, recipients: Sequence[Recipient]
) -> None:
    """Write the files of ``folder`` as ``target``, which must not be there yet, and put it on disk.

    Encrypted when there are recipients. Raises BackupError when a file changed meanwhile, OSError.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        sealed = EncryptingWriter(file, recipients) if recipients else None
        _write(folder, manifest, file if sealed is None else sealed)
        if sealed is not None:
            sealed.finish()
        file.flush()
        os.fsync(file.fileno())


def _write(folder: Path, manifest: BackupManifest, sink: Sink) -> None:
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()

    def put(data: bytes) -> None:
        sink.write(compressor.compress(data))

    text = manifests.encode(manifest)
    put(write_header(Member(path=manifests.NAME, size=len(text))) + text + bytes(padding(len(text))))
    for entry in manifest.files:
        put(write_header(Member(path=entry.path, size=entry.size)))
        with (folder / entry.path).open("rb") as file:
            for chunk in _checked(entry, iter(partial(file.read, CHUNK), b"")):
                put(chunk)
        put(bytes(padding(entry.size)))
    put(END)
    sink.write(compressor.flush())


def read_archive(file: BinaryIO, identities: Sequence[Identity], take: Taker) -> BackupManifest:
    """Check a backup from its first to its last byte and hand its files to ``take``, each as it is listed.

    A file must not be trusted before this returns. Raises BackupError for anything that is not a whole backup,
    or is encrypted to none of the identities; OSError.
    """
    with words():
        frame, manifest = _begin(file, identities)
        for entry in manifest.files:
            member = _member(frame)
            if member.path != entry.path or member.size != entry.size:
                raise BackupError(
                    f"the backup holds {member.path!r:.120} where {manifests.NAME} lists {entry.path}"
                )
            take(entry, _checked(entry, _chunks(frame, entry.size)))
            if any(frame.read(padding(entry.size))):
                raise BackupError("the backup is damaged: bytes between two files")
        rest = frame.read_rest(MAX_END)
        if len(rest) < len(END) or any(rest):
            raise BackupError(f"the backup holds more than its {manifests.NAME} lists, or has no end mark")
    return manifest


def check_archive(file: BinaryIO, identities: Sequence[Identity]) -> BackupManifest:
    """Check a backup without keeping anything. Raises BackupError, OSError."""

    def discard(_entry: BackupFile, chunks: Iterator[bytes]) -> None:
        for _ in chunks:
            pass

    return read_archive(file, identities, discard)


def peek_manifest(file: BinaryIO, identities: Sequence[Identity]) -> BackupManifest:
    """Return the manifest alone; what follows is not looked at. The file stands at its beginning afterwards."""
    with words():
        _, manifest = _begin(file, identities)
    file.seek(0)
    return manifest


def is_encrypted(file: BinaryIO) -> bool:
    """Tell whether a file, which stands at its beginning, is an encrypted backup."""
    start = file.read(len(VERSION))
    file.seek(0)
    return start == VERSION


@contextlib.contextmanager
def words() -> Iterator[None]:
    """Let the readers of frame and tar, which packs use too, speak of backups."""
    try:
        yield
    except PackError as error:
        text = error.message.replace("not a pack", "not a backup").replace("the archive", "the backup")
        raise BackupError(text.replace("pack.toml", manifests.NAME)) from error


def _begin(file: BinaryIO, identities: Sequence[Identity]) -> tuple[FrameReader, BackupManifest]:
    """Return the manifest, and what its files are read from next."""
    encrypted = is_encrypted(file)
    # It reads as a file does.
    plain: BinaryIO = DecryptingReader(file, identities) if encrypted else file  # type: ignore[assignment]
    frame = FrameReader(plain)
    member = _member(frame)
    if member.path != manifests.NAME or member.size > manifests.MAX_BYTES:
        raise BackupError(f"not a backup: it does not begin with {manifests.NAME}")
    manifest = manifests.parse(frame.read(member.size))
    frame.read(padding(member.size))
    # The folder of unencrypted backups may be written by others: the box's secret must not be theirs to choose.
    secrets = [] if encrypted else [entry.path for entry in manifest.files if entry.is_secret]
    if secrets:
        raise BackupError(
            f"the backup holds {secrets[0]}, which only encrypted ones do: this box did not make it so. "
            "Take the file as it was made, with --identity"
        )
    return frame, manifest


def _member(frame: FrameReader) -> Member:
    member = read_header(frame.read(512))
    if member is None:
        raise BackupError("the backup is cut short: a file is missing")
    return member


def _chunks(frame: FrameReader, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = frame.read(min(size, CHUNK))
        size -= len(chunk)
        yield chunk


def _checked(entry: BackupFile, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass chunks on; after the last one raise BackupError unless they were what the manifest says."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise BackupError(f"{entry.path} is not what {manifests.NAME} says: size or SHA-256 differ")
