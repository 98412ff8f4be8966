"""``system_fingerprint``: changes when the build, the pack or the profile does."""

from __future__ import annotations

import functools
import hashlib

import msgspec

from appliance import __version__
from appliance.packs.manifest import Manifest


def system_fingerprint(manifest: Manifest, variant: str) -> str:
    """Return ``fp_`` and ten hexadecimal digits over program version, pack files, and what of them runs."""
    files = tuple(file.sha256 for file in manifest.file)
    return _fingerprint(manifest.name, manifest.version, variant, files)


@functools.lru_cache(maxsize=256)
def _fingerprint(*parts: str | tuple[str, ...]) -> str:
    return "fp_" + hashlib.sha256(msgspec.json.encode([__version__, *parts])).hexdigest()[:10]
