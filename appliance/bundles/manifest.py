"""``MANIFEST.json``, the first member of every bundle: what it is and every file in it, in canonical JSON.

Canonical: sorted keys, no blanks, files in the order of the archive; a manifest has one spelling.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from appliance.bundles.errors import BundleError
from appliance.packs.manifest import MANIFEST_NAME as PACK_MANIFEST
from appliance.signing.signatures import MAX_SEQUENCE, Subject

MANIFEST_NAME = "MANIFEST.json"
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 50_000
_MAX_PATH = 255  # what a ustar header holds; its parts may hold less

# Names come to stand in file names: no separators, no leading dot.
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,63}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
# No set-uid, nothing that others may write.
Mode = Literal["0644", "0755"]
ByteCount = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
SchemaVersion = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member: a file with size, SHA-256 and mode, or a relative ``link`` to another one."""

    path: str
    size: ByteCount | msgspec.UnsetType = msgspec.UNSET
    sha256: Sha256 | msgspec.UnsetType = msgspec.UNSET
    mode: Mode | msgspec.UnsetType = msgspec.UNSET
    link: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def length(self) -> int:
        """Bytes of contents; a link has none."""
        return self.size if isinstance(self.size, int) else 0

    @property
    def permissions(self) -> int:
        """The mode as a number."""
        return int(self.mode, 8) if isinstance(self.mode, str) else 0o777

    @property
    def target(self) -> str | None:
        """Where a link leads; None for a file."""
        return self.link if isinstance(self.link, str) else None


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the contents need: CPU flags as /proc/cpuinfo names them, glibc ("" = any), bytes."""

    cpu: tuple[Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,32}\Z")], ...] = ()
    glibc: Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,3}\.[0-9]{1,3})?\Z")] = ""
    memory_bytes: ByteCount = 0
    disk_bytes: ByteCount = 0


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole manifest. ``created`` is in seconds since the epoch.

    ``schema_version`` is the store's schema that a release migrates to, ``schema_readable_from`` the oldest
    schema whose programs may open a store that it migrated; both are 0 in packs.
    """

    schema: Literal[1] = 1
    kind: Literal["system", "pack"]
    name: Name
    version: Version
    sequence: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCE)]
    created: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    files: Annotated[tuple[Entry, ...], msgspec.Meta(min_length=1, max_length=MAX_FILES)]
    schema_version: SchemaVersion = 0
    schema_readable_from: SchemaVersion = 0
    requires: Requirements = Requirements()

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.length for entry in self.files)

    @property
    def file_name(self) -> str:
        """What the bundle's file is called."""
        return f"{self.name}-{self.version}-{self.sequence}.tar.zst"

    @property
    def subject(self) -> Subject:
        """What its signature has to say."""
        return Subject(name=self.name, sequence=self.sequence, kind=self.kind)


def order(path: str) -> tuple[bool, str]:
    """Return the sort key of the archive: a pack's own manifest first, then by path."""
    return (path != PACK_MANIFEST, path)


def encode_manifest(manifest: BundleManifest) -> bytes:
    """Return the manifest's bytes."""
    return msgspec.json.encode(manifest, order="sorted")


def parse_manifest(data: bytes) -> BundleManifest:
    """Read a manifest and check all that can be checked without the files. Raises BundleError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(data, type=BundleManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is not valid: {error}") from error
    if encode_manifest(manifest) != data:
        raise BundleError(f"{MANIFEST_NAME} is not in canonical form")
    check_entries(manifest.files)
    return manifest


def check_entries(entries: tuple[Entry, ...]) -> None:
    """Raise BundleError unless every entry is a file or link inside, listed once and in order."""
    paths = [entry.path for entry in entries]
    if paths != sorted(set(paths), key=order) or MANIFEST_NAME in paths:
        raise BundleError(f"{MANIFEST_NAME} lists a file twice, itself, or not in order")
    for path in paths:
        _check_path(path)
    listed = set(paths)
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}
    for both in sorted(listed & folders):
        raise BundleError(f"{MANIFEST_NAME} lists {both!r:.200} as a file and as a folder")
    for entry in entries:
        values = (entry.size, entry.sha256, entry.mode)
        if entry.target is None:
            if msgspec.UNSET in values:
                raise BundleError(f"{MANIFEST_NAME} lacks size, sha256 or mode of {entry.path!r:.200}")
        elif any(value is not msgspec.UNSET for value in values):
            raise BundleError(f"{MANIFEST_NAME} lists {entry.path!r:.200} as a file and as a link")
        else:
            _check_link(entry.path, entry.target, listed | folders)


def _check_path(path: str) -> None:
    if not path.isascii() or not path.isprintable() or "\\" in path or not 0 < len(path) <= _MAX_PATH:
        raise BundleError(f"{MANIFEST_NAME} lists a file whose name cannot be: {path!r:.200}")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise BundleError(f"{MANIFEST_NAME} lists a file that leaves the bundle: {path!r:.200}")


def _check_link(path: str, target: str, listed: set[str]) -> None:
    """Refuse a link that is not relative, leaves the bundle, or leads to nothing that is listed.

    Steps upward may stand at its beginning only: from a true folder (no entry lies below a link) they end
    in a true folder inside, while after a name that is itself a link they could lead anywhere.
    """
    parts = target.split("/")
    ups = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    folder = path.split("/")[:-1]
    reached = "/".join([*folder[: len(folder) - ups], *parts[ups:]]) if ups <= len(folder) else ""
    if any(part in ("", ".", "..") for part in parts[ups:]) or reached not in listed or len(target) > 100:
        raise BundleError(
            f"{MANIFEST_NAME} lists a link that leaves the bundle: {path!r:.150} -> {target!r:.150}"
        )
