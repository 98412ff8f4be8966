"""Versions of one pack: the one that the box has, a newer one, and one whose model is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.bundles.packs import export_pack
from appliance.packs.manifest import read_manifest
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import sign_file
from tests.pack_variants import other_version

PACK = "bge-small-en-v1.5"
FIRST, NEWER, BROKEN = 1, 2, 4


@dataclass(frozen=True)
class PackGoods:
    """Signed bundles; ``version`` and ``newer_version`` are what the first two say."""

    first: Path
    newer: Path
    broken: Path
    version: str
    newer_version: str


def make_pack_goods(installed: Path, folder: Path, key: SecretKey) -> PackGoods:
    """Make them in ``folder`` from the unpacked pack ``installed``."""
    for place in ("newer", "broken"):
        (folder / place).mkdir(parents=True)
    version = read_manifest(installed).version
    newer_version = f"{version}.next"
    return PackGoods(
        first=_bundle(installed, folder, FIRST, key),
        newer=_bundle(other_version(installed, folder / "newer" / PACK, newer_version), folder, NEWER, key),
        broken=_bundle(
            other_version(
                installed, folder / "broken" / PACK, f"{version}.broken", graph=b"broken on purpose"
            ),
            folder,
            BROKEN,
            key,
        ),
        version=version,
        newer_version=newer_version,
    )


def _bundle(pack: Path, folder: Path, sequence: int, key: SecretKey) -> Path:
    manifest = export_pack(pack, folder, sequence)
    path = folder / manifest.file_name
    sign_file(path, key, manifest.subject)
    return path
