"""``NAME.tar.zst``: one Zstandard frame around a ustar archive, ``pack.toml`` first, then the files by path.

The hashes in ``pack.toml`` tell damage, not origin. What travels between boxes is a signed bundle (the
bundles room), whose signature is checked over all its bytes before anything here reads it; a signature
beside a plain archive is checked alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import zstandard

from appliance.disk import taking_the_place_of
from appliance.packs.errors import PackError, refusal
from appliance.packs.frame import FrameReader
from appliance.packs.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, PackFile, parse_manifest
from appliance.packs.meter import Cancelled, Meter, Progress
from appliance.packs.staging import Sink, checked, open_plain, read_chunks
from appliance.packs.tar import BLOCK, END, MAX_END, Member, padding, read_header, write_header

SUFFIX = ".tar.zst"
# Quantised weights hardly shrink further at higher levels, which take many times as long.
LEVEL = 3


def read_archive(archive: Path, sink: Sink, meter: Meter) -> Manifest:
    """Check ``archive`` from its first to its last byte and hand its files to ``sink``.

    Only the files that its manifest lists pass, each once, with the listed size and SHA-256 (which
    is known only after the last chunk: the sink's user must not trust a file before this returns).
    Raises PackError for anything else, PackCancelledError; OSError when reading or the sink fails.
    """
    with open_plain(archive) as file:
        frame = FrameReader(file)
        return read_members(frame, frame.read(BLOCK), sink, meter)


def read_members(frame: FrameReader, first: bytes, sink: Sink, meter: Meter) -> Manifest:
    """Do what ``read_archive`` does with a frame whose first block was read."""
    manifest, text = read_first_member(frame, first)
    meter.expect(len(text) + sum(entry.size for entry in manifest.file))
    sink.admit(manifest)
    sink.write(MANIFEST_NAME, iter((text,)))
    meter.advance(len(text))
    missing = {entry.path: entry for entry in manifest.file}
    while missing:
        entry = _next_entry(frame, missing)
        del missing[entry.path]
        sink.write(entry.path, checked(entry, read_chunks(frame.read, entry.size), meter.advance))
        _skip_padding(frame, entry.size)
    rest = frame.read_rest(MAX_END)
    if len(rest) < len(END) or any(rest):
        raise PackError("the archive holds more than its pack.toml lists, or has no end mark")
    return manifest


def write_archive(
    directory: Path, archive: Path, progress: Progress | None = None, cancelled: Cancelled | None = None
) -> Manifest:
    """Write the pack in ``directory`` as ``archive``; it appears, or replaces an older one, when it is whole.

    Equal packs give equal bytes (with the same release of the zstd library). Raises PackError when
    the pack is not what its manifest says, or the archive cannot be written.
    """
    meter = Meter(progress, cancelled)
    try:
        with taking_the_place_of(archive) as file:
            manifest, text = _manifest_of(directory)
            meter.expect(len(text) + sum(entry.size for entry in manifest.file))
            compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
            for piece in _pieces(directory, manifest, text, meter):
                file.write(compressor.compress(piece))
            file.write(compressor.flush())
    except OSError as error:
        raise refusal(error, "write the archive") from error
    return manifest


def read_first_member(frame: FrameReader, first: bytes) -> tuple[Manifest, bytes]:
    """Return the manifest, whose header is ``first``, and its text. Raises PackError."""
    header = read_header(first)
    if header is None or header.path != MANIFEST_NAME:
        raise PackError(f"not a pack: its first file is not {MANIFEST_NAME}")
    if header.size > MAX_MANIFEST_BYTES:
        raise PackError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    text = frame.read(header.size)
    _skip_padding(frame, header.size)
    return parse_manifest(text), text


def _next_entry(frame: FrameReader, missing: dict[str, PackFile]) -> PackFile:
    header = read_header(frame.read(512))
    if header is None:
        raise PackError(f"the archive lacks {min(missing)}")
    path = header.path
    if path.startswith("/") or ".." in path.split("/"):
        raise PackError(f"the archive holds a file that leaves the pack: {path!r:.200}")
    entry = missing.get(path)
    if entry is None:
        raise PackError(f"the archive holds a file twice, or one that pack.toml does not list: {path!r:.200}")
    if header.size != entry.size:
        raise PackError(f"{path} has {header.size} bytes instead of the {entry.size} that pack.toml lists")
    return entry


def _skip_padding(frame: FrameReader, size: int) -> None:
    if any(frame.read(padding(size))):
        raise PackError("the archive is damaged: a file is followed by something else than zeros")


def _manifest_of(directory: Path) -> tuple[Manifest, bytes]:
    with open_plain(directory / MANIFEST_NAME) as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(text), text


def _pieces(directory: Path, manifest: Manifest, text: bytes, meter: Meter) -> Iterator[bytes]:
    yield write_header(Member(path=MANIFEST_NAME, size=len(text)))
    yield text + bytes(padding(len(text)))
    meter.advance(len(text))
    for entry in sorted(manifest.file, key=lambda entry: entry.path):
        yield write_header(Member(path=entry.path, size=entry.size))
        with open_plain(directory / entry.path) as file:
            # One byte more than listed, so that a file that grew is noticed.
            yield from checked(entry, read_chunks(file.read, entry.size + 1), meter.advance)
        yield bytes(padding(entry.size))
    yield END
