"""Writes bundles: equal folders give equal bytes (with the same release of the zstd library)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from appliance.bundles.errors import BundleError
from appliance.bundles.manifest import MANIFEST_NAME, BundleManifest, Entry, encode_manifest, parse_manifest
from appliance.disk import taking_the_place_of
from appliance.packs.errors import PackError
from appliance.packs.meter import Progress
from appliance.packs.staging import open_plain
from appliance.packs.tar import END, Member, padding, write_header

CHUNK = 1 << 20
# Weights hardly shrink further at higher levels; a program's tree does, and readers need no more memory.
LEVEL_OF_PACKS = 3
LEVEL_OF_SYSTEMS = 12


def write_bundle(
    root: Path, manifest: BundleManifest, target: Path, progress: Progress | None = None
) -> None:
    """Write the files of ``root`` that ``manifest`` lists as the bundle ``target``.

    It appears, or replaces an older one, when it is whole. Raises BundleError when a file is not (any
    more) what the manifest says, or the bundle cannot be written.
    """
    text = encode_manifest(manifest)
    parse_manifest(text)
    level = LEVEL_OF_PACKS if manifest.kind == "pack" else LEVEL_OF_SYSTEMS
    total, done = manifest.unpacked_bytes, 0
    try:
        with taking_the_place_of(target) as file:
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
            for piece in _pieces(root, manifest, text):
                file.write(compressor.compress(piece))
                done += len(piece)
                if progress is not None:
                    progress(min(done, total), total)
            file.write(compressor.flush())
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror or error}") from error
    except PackError as error:
        raise BundleError(error.message) from error


def _pieces(root: Path, manifest: BundleManifest, text: bytes) -> Iterator[bytes]:
    yield write_header(Member(path=MANIFEST_NAME, size=len(text)))
    yield text + bytes(padding(len(text)))
    for entry in manifest.files:
        yield write_header(
            Member(path=entry.path, size=entry.length, mode=entry.permissions, link=entry.target)
        )
        yield from _contents(root, entry)
        yield bytes(padding(entry.length))
    yield END


def _contents(root: Path, entry: Entry) -> Iterator[bytes]:
    if entry.target is not None:
        return
    digest, size = hashlib.sha256(), 0
    with open_plain(root / entry.path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > entry.length:
                break
            yield chunk
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise BundleError(f"{entry.path} changed while the bundle was written")
