"""Small bundles of releases and packs, and ways to build ones that no writer of ours would write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from appliance.bundles.manifest import MANIFEST_NAME, BundleManifest, Requirements
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.packs.tar import END, Member, padding, write_header
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import sign_file
from appliance.signing.trust import Verified
from tests.packs.sample import compress

TREE = {
    "appliance": b"#!/bin/sh\necho served\n",
    "_internal/lib/libgomp.so.1": bytes(range(256)) * 8,
    "_internal/zoneinfo/Etc/GMT+1": b"TZif",
    "empty": b"",
    "trust/some.pub": b"a key\n",
}
LINKS = {"_internal/libgomp.so": "lib/libgomp.so.1", "_internal/zoneinfo/up": "../lib", "run": "appliance"}


def write_tree(
    root: Path, files: dict[str, bytes] | None = None, links: dict[str, str] | None = None
) -> Path:
    """Write a release tree; ``appliance`` may be executed."""
    for path, data in (TREE if files is None else files).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if path == "appliance" else 0o644)
    for path, leads_to in (LINKS if links is None else links).items():
        (root / path).symlink_to(leads_to)
    return root


def manifest_of(root: Path, sequence: int = 1, version: str = "1.0.0") -> BundleManifest:
    """Return the manifest of a release."""
    return BundleManifest(
        kind="system",
        name="appliance",
        version=version,
        sequence=sequence,
        created=1_800_000_000,
        files=list_tree(root),
        schema_version=10,
        schema_readable_from=9,
        requires=Requirements(cpu=("avx2",), glibc="2.36", memory_bytes=1 << 30, disk_bytes=1 << 20),
    )


def system_bundle(folder: Path, key: SecretKey, sequence: int = 1, **tree: Any) -> Path:
    """Write a tree, its bundle and the signature; returns the bundle."""
    root = write_tree(folder / f"tree-{sequence}", **tree)
    manifest = manifest_of(root, sequence)
    path = folder / manifest.file_name
    write_bundle(root, manifest, path)
    sign_file(path, key, manifest.subject)
    return path


def entry(path: str, data: bytes, mode: str = "0644") -> dict[str, Any]:
    """Return the JSON of a file's entry."""
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "mode": mode}


def manifest_json(entries: list[dict[str, Any]], **changes: Any) -> bytes:
    """Return a canonical manifest with any entries, checked by nobody."""
    values = {
        "schema": 1,
        "kind": "system",
        "name": "appliance",
        "version": "1.0.0",
        "sequence": 1,
        "created": 1,
        "files": entries,
        "schema_version": 0,
        "schema_readable_from": 0,
        "requires": {"cpu": [], "glibc": "", "memory_bytes": 0, "disk_bytes": 0},
        **changes,
    }
    return msgspec.json.encode(values, order="sorted")


def member(path: str, data: bytes = b"", mode: int = 0o644, link: str | None = None) -> bytes:
    """Return one well-formed tar member."""
    return (
        write_header(Member(path=path, size=len(data), mode=mode, link=link))
        + data
        + bytes(padding(len(data)))
    )


def raw_bundle(path: Path, manifest: bytes, *members: bytes, end: bytes = END) -> Verified:
    """Write a bundle of any members, and return what its signature would say."""
    path.write_bytes(compress(b"".join((member(MANIFEST_NAME, manifest), *members, end))))
    data = path.read_bytes()
    return Verified(
        name="appliance",
        sequence=1,
        kind="system",
        key_id="0" * 16,
        digest=hashlib.blake2b(data).digest(),
        size=len(data),
    )


def snapshot(root: Path) -> dict[str, tuple[str, bytes]]:
    """Return every file and link below ``root`` with its mode."""
    return {
        path.relative_to(root).as_posix(): ("link", str(path.readlink()).encode())
        if path.is_symlink()
        else (f"{path.stat().st_mode & 0o7777:04o}", path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
