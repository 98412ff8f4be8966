"""``system_fingerprint``: changes when the build or the pack does."""

from __future__ import annotations

import functools
import hashlib

import msgspec

from appliance import __version__
from appliance.packs.manifest import Manifest


def system_fingerprint(manifest: Manifest) -> str:
    """Return ``fp_`` and ten hexadecimal digits over the program's version and the pack's file hashes."""
    return _fingerprint(manifest.name, manifest.version, tuple(file.sha256 for file in manifest.file))


@functools.lru_cache(maxsize=256)
def _fingerprint(*parts: str | tuple[str, ...]) -> str:
    return "fp_" + hashlib.sha256(msgspec.json.encode([__version__, *parts])).hexdigest()[:10]
