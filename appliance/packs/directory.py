"""An unpacked pack: read it as a source of installation, look at it, verify it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.packs.errors import PackError
from appliance.packs.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from appliance.packs.meter import Meter
from appliance.packs.staging import Sink, checked, open_plain, read_chunks


def read_directory(directory: Path, sink: Sink, meter: Meter) -> Manifest:
    """Check the pack in ``directory`` whole and hand its files to ``sink``.

    Raises PackError when a file is missing, not listed, a link, or not what the manifest says;
    PackCancelledError; OSError when reading or the sink fails.
    """
    with open_plain(directory / MANIFEST_NAME) as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    manifest = parse_manifest(text)
    check_files(directory, manifest)
    check_unlisted(directory, manifest)
    meter.expect(len(text) + sum(entry.size for entry in manifest.file))
    sink.admit(manifest)
    sink.write(MANIFEST_NAME, iter((text,)))
    meter.advance(len(text))
    for entry in manifest.file:
        with open_plain(directory / entry.path) as source:
            # One byte more than listed, so that a file that grew is noticed.
            sink.write(entry.path, checked(entry, read_chunks(source.read, entry.size + 1), meter.advance))
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raise PackError unless every listed file is there, a regular file, and of its size."""
    for entry in manifest.file:
        try:
            status = (directory / entry.path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise PackError(f"{entry.path} is missing") from None
        if not stat.S_ISREG(status.st_mode):
            raise PackError(f"{entry.path} is not a regular file")
        if status.st_size != entry.size:
            raise PackError(
                f"{entry.path} has {status.st_size} bytes instead of the {entry.size} that pack.toml lists"
            )


def check_unlisted(directory: Path, manifest: Manifest) -> None:
    """Raise PackError when the directory holds anything that the manifest does not list."""
    listed = {MANIFEST_NAME, *(entry.path for entry in manifest.file)}
    for folder, folders, files in os.walk(directory):
        for name in files + [name for name in folders if (Path(folder) / name).is_symlink()]:
            path = (Path(folder) / name).relative_to(directory).as_posix()
            if path not in listed:
                raise PackError(f"{path!r:.200} is not listed in {MANIFEST_NAME}")
