"""Small packs and archives to install, and ways to spoil them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import zstandard

from appliance.packs.manifest import MANIFEST_NAME
from appliance.packs.tar import END, Member, padding, write_header

FILES = {"labels.txt": b"cat\ndog\n", "model.onnx": bytes(range(256)) * 300, "text/empty.json": b""}


def contents(seed: int, size: int = 3000) -> dict[str, bytes]:
    """Return the files of a pack; another seed gives other contents under the same names."""
    generator = random.Random(seed)
    return {
        "model.onnx": generator.randbytes(size),
        "text/tokenizer.json": generator.randbytes(size // 3),
        "labels.txt": b"%d" % seed,
    }


def manifest_text(files: dict[str, bytes], name: str = "sample", **changes: str) -> bytes:
    """Return a valid ``pack.toml`` for ``files``; ``changes`` are further or replaced TOML values."""
    fields = {
        "format": "1",
        "name": f'"{name}"',
        "version": '"1"',
        "task": '"layout"',
        "engine": '"onnx"',
        "description": '"a sample"',
        "license": '"Apache-2.0"',
        "owned_by": '"tests"',
        "created": "1700000000",
        "recipe_sha256": f'"{"0" * 64}"',
        "source": "[]",
        **changes,
    }
    lines = [f"{field} = {value}" for field, value in fields.items()]
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        lines += ["[[file]]", f'path = "{path}"', f"size = {len(data)}", f'sha256 = "{sha256}"']
    return "\n".join(lines).encode() + b"\n"


def write_pack(directory: Path, files: dict[str, bytes], name: str = "sample", **changes: str) -> Path:
    """Write an unpacked pack and return its directory."""
    for path, data in {MANIFEST_NAME: manifest_text(files, name, **changes), **files}.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return directory


def member(path: str, data: bytes) -> bytes:
    """Return one well-formed tar member."""
    return write_header(Member(path=path, size=len(data))) + data + bytes(padding(len(data)))


def tar_of(files: dict[str, bytes], name: str = "sample") -> bytes:
    """Return the tar stream of a good pack."""
    everything = {MANIFEST_NAME: manifest_text(files, name), **files}
    return b"".join(member(path, data) for path, data in everything.items()) + END


def compress(tar: bytes) -> bytes:
    """Return ``tar`` as our writer compresses it."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(tar)


def snapshot(store: Path) -> dict[str, bytes]:
    """Return every file below ``store`` but its lock and hash cache."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".verified")
    }


def names(directory: Path) -> list[str]:
    """Return the sorted names in ``directory``."""
    return sorted(path.name for path in directory.iterdir())


def leftovers(store: Path) -> list[str]:
    """Return what an interrupted change left in ``store``."""
    return [name for name in names(store) if name[0] == "." and name not in (".lock", ".verified")]
