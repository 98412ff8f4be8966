"""Model packs as bundles: the files of a pack, ``pack.toml`` among them, behind a ``MANIFEST.json``."""

from __future__ import annotations

from pathlib import Path

from appliance.bundles.errors import BundleError
from appliance.bundles.manifest import MANIFEST_NAME, BundleManifest, Entry, Requirements
from appliance.bundles.reader import HashedFile, check_header, contents, finish, read_manifest_member
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.packs.archive import read_first_member, read_members
from appliance.packs.directory import check_files, check_unlisted
from appliance.packs.errors import PackError
from appliance.packs.frame import FrameReader
from appliance.packs.manifest import MANIFEST_NAME as PACK_MANIFEST
from appliance.packs.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest, read_manifest
from appliance.packs.meter import Meter, Progress
from appliance.packs.staging import Sink, open_plain
from appliance.packs.store import Reader
from appliance.packs.tar import BLOCK, padding, read_header
from appliance.signing.trust import Verified


def pack_reader(verified: Verified | None) -> Reader:
    """Return the reader of a pack's bundle or plain archive, for ``PackStore.install`` and ``check_pack``.

    With ``verified`` it passes only the bytes that were verified, and only the pack that they are said to be.
    """

    def read(source: Path, sink: Sink, meter: Meter) -> Manifest:
        with open_plain(source) as opened:
            file = HashedFile(opened)
            frame = FrameReader(file)
            first = frame.read(BLOCK)
            header = read_header(first)
            if header is not None and header.path == MANIFEST_NAME:
                frame.manifest = MANIFEST_NAME
                manifest = _read_bundle(frame, first, sink, meter, verified)
            else:
                manifest = read_members(frame, first, sink, meter)
            file.compare(verified)
        if verified is not None and manifest.name != verified.name:
            raise BundleError(
                f"the signature is of {verified.name}, but the pack says that it is {manifest.name}"
            )
        return manifest

    return read


def look(path: Path, verified: Verified | None) -> BundleManifest | Manifest:
    """Return what a bundle or plain archive says it is, without reading more of it. Raises PackError, BundleError."""
    with open_plain(path) as opened:
        frame = FrameReader(opened)
        first = frame.read(BLOCK)
        header = read_header(first)
        if header is not None and header.path == MANIFEST_NAME:
            return read_manifest_member(frame, first, verified)
        return read_first_member(frame, first)[0]


def export_pack(
    directory: Path, target: Path, sequence: int, progress: Progress | None = None
) -> BundleManifest:
    """Write the unpacked pack in ``directory`` as the bundle ``target``, or a fitting name in that folder.

    Raises PackError or BundleError when the pack is not whole, or the bundle cannot be written.
    """
    pack = read_manifest(directory)
    check_files(directory, pack)
    check_unlisted(directory, pack)
    manifest = bundle_manifest(directory, pack, sequence)
    _compare(pack, manifest)
    write_bundle(directory, manifest, target / manifest.file_name if target.is_dir() else target, progress)
    return manifest


def bundle_manifest(directory: Path, pack: Manifest, sequence: int) -> BundleManifest:
    """Return the manifest of the bundle of an unpacked pack."""
    # Nothing in a pack is a program.
    files = tuple(
        Entry(path=entry.path, size=entry.size, sha256=entry.sha256, mode="0644")
        for entry in list_tree(directory)
    )
    return BundleManifest(
        kind="pack",
        name=pack.name,
        version=pack.version,
        sequence=sequence,
        created=pack.created,
        files=files,
        requires=Requirements(
            memory_bytes=pack.memory_bytes, disk_bytes=sum(entry.length for entry in files)
        ),
    )


def _read_bundle(
    frame: FrameReader, first: bytes, sink: Sink, meter: Meter, verified: Verified | None
) -> Manifest:
    bundle = read_manifest_member(frame, first, verified)
    if bundle.kind != "pack":
        raise BundleError(
            f"this is {bundle.name} {bundle.version}, a system bundle: 'appliance upgrade' takes it"
        )
    if bundle.files[0].path != PACK_MANIFEST or bundle.files[0].length > MAX_MANIFEST_BYTES:
        raise BundleError(f"not a pack: it has no {PACK_MANIFEST}, or a far too large one")
    meter.expect(bundle.unpacked_bytes)
    pack: Manifest | None = None
    for entry in bundle.files:
        check_header(read_header(frame.read(BLOCK), links=True), entry)
        chunks = contents(frame, entry, meter.advance)
        if pack is None:
            text = b"".join(chunks)
            pack = parse_manifest(text)
            _compare(pack, bundle)
            sink.admit(pack)
            chunks = iter((text,))
        sink.write(entry.path, chunks)
        if any(frame.read(padding(entry.length))):
            raise PackError(f"{entry.path} is followed by something else than zeros")
    finish(frame)
    if pack is None:
        raise BundleError("the bundle holds no files")
    return pack


def _compare(pack: Manifest, bundle: BundleManifest) -> None:
    """Refuse a bundle whose two lists of files are not one, before a file of it is written."""
    if (pack.name, pack.version) != (bundle.name, bundle.version):
        raise BundleError(
            f"{MANIFEST_NAME} says {bundle.name} {bundle.version}, {PACK_MANIFEST} {pack.name} {pack.version}"
        )
    of_pack = {entry.path: (entry.size, entry.sha256, "0644") for entry in pack.file}
    of_bundle = {
        entry.path: (entry.size, entry.sha256, entry.mode)
        for entry in bundle.files
        if entry.path != PACK_MANIFEST
    }
    for path in sorted(of_pack.keys() | of_bundle.keys()):
        if of_pack.get(path) != of_bundle.get(path):
            raise BundleError(f"{MANIFEST_NAME} and {PACK_MANIFEST} do not agree on {path}")
