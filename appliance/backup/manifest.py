"""``MANIFEST.json`` of a backup: what is in it, by size and hash, and of what state of the box it is."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from appliance.backup.errors import BackupError

NAME = "MANIFEST.json"
# Ten thousand collections take some 2 MB.
MAX_BYTES = 8 << 20

STORE = "appliance.db"
COLLECTIONS = "collections"
CONFIGURATION = "appliance.toml"
SECRET = "secret.key"  # noqa: S105 - a file name
# The authority of the box's certificates: secret, and what the clients of the LAN trust.
AUTHORITY = "tls"

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
# Nothing else is ever written from a backup: no ``..``, no absolute path, no other folder.
_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,90}"
_PATH = rf"^(?:appliance\.db|appliance\.toml|secret\.key|collections/{_PLAIN}\.db|tls/{_PLAIN})\Z"
FilePath = Annotated[str, msgspec.Meta(pattern=_PATH)]
# Printed where operators read: nothing in it steers a terminal.
Text = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
# UTC milliseconds that calendars know: up to the year 9999.
LATEST = 253_402_300_799_999


class BackupFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file: its path in the data directory, size in bytes, SHA-256, permission bits."""

    path: FilePath
    size: Size
    sha256: Sha256
    mode: Literal[0o600] = 0o600

    @property
    def is_store(self) -> bool:
        """Whether this is a SQLite file."""
        return self.path.endswith(".db")

    @property
    def is_secret(self) -> bool:
        """Whether this belongs into encrypted backups only."""
        return self.path == SECRET or self.path.startswith(f"{AUTHORITY}/")


class BackedUpPack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pack that was installed, without its weights: ``sha256`` is of its ``pack.toml``."""

    name: Text
    # Whatever the pack says: packs may, and it is nowhere printed.
    version: Annotated[str, msgspec.Meta(max_length=200)]
    sha256: Sha256


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a backup. ``created`` is UTC milliseconds, ``version`` the program's.

    ``schema_version`` is the oldest schema whose programs may open ``appliance.db``, ``audit_head`` the last line of
    its audit log (LINE:MAC).
    """

    schema: Literal[1] = 1
    kind: Literal["backup"] = "backup"
    name: Text
    created: Annotated[int, msgspec.Meta(ge=0, le=LATEST)]
    version: Text
    schema_version: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    audit_head: Text
    files: Annotated[list[BackupFile], msgspec.Meta(max_length=20_000)]
    packs: Annotated[list[BackedUpPack], msgspec.Meta(max_length=10_000)]

    def has(self, path: str) -> bool:
        """Tell whether a file is in the backup."""
        return any(file.path == path for file in self.files)


def is_path(text: str) -> bool:
    """Tell whether a backup may hold a file of this path."""
    return re.fullmatch(_PATH, text) is not None


def encode(manifest: BackupManifest) -> bytes:
    """Return the canonical form: sorted keys, no blanks."""
    return msgspec.json.encode(manifest, order="sorted")


def parse(text: bytes) -> BackupManifest:
    """Read a manifest. Raises BackupError unless it is a canonical one, with each path once."""
    try:
        manifest = msgspec.json.decode(text, type=BackupManifest)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackupError(f"the backup's {NAME} is not valid: {error}") from error
    if encode(manifest) != text:
        raise BackupError(f"the backup's {NAME} is not in canonical form")
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths) or STORE not in paths:
        raise BackupError(f"the backup's {NAME} names a file twice, or no {STORE}")
    return manifest
