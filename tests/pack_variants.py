"""Packs like another one: the default chat pack with another template and tool format, any pack in another version."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Literal

from tests.packs_fixture import built_pack
from tests.service import CHAT

TEMPLATES = Path(__file__).resolve().parent.parent / "model_packs" / "templates"


def chat_variant(
    packs_dir: Path, name: str, *, tool_format: Literal["none", "hermes"], template: str | None = None
) -> None:
    """Put the default chat pack into ``packs_dir`` as ``name``, with another template by its file's name."""
    source, target = built_pack(CHAT), packs_dir / name
    packs_dir.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
    manifest = (source / "pack.toml").read_text()
    manifest = manifest.replace(f'name = "{CHAT}"', f'name = "{name}"')
    manifest = re.sub(r'^tool_format = ".*"$', f'tool_format = "{tool_format}"', manifest, flags=re.MULTILINE)
    if template is not None:
        text = (TEMPLATES / f"{template}.jinja").read_bytes()
        changed = target / "chat_template.jinja"
        changed.unlink()
        changed.write_bytes(text)
        entry = (
            f'path = "chat_template.jinja"\nsize = {len(text)}\nsha256 = "{hashlib.sha256(text).hexdigest()}"'
        )
        manifest, count = re.subn(
            r'path = "chat_template\.jinja"\nsize = \d+\nsha256 = "[0-9a-f]+"', entry, manifest
        )
        assert count == 1
    (target / "pack.toml").unlink()
    (target / "pack.toml").write_text(manifest)


def other_version(source: Path, target: Path, version: str, *, graph: bytes | None = None) -> Path:
    """Make ``target`` the unpacked pack ``source`` in another version, by second names of its files.

    ``graph`` takes the place of its model.
    """
    shutil.copytree(source.resolve(), target, copy_function=os.link)
    manifest = target / "pack.toml"
    # The first of its versions is the pack's own; sources have theirs.
    text, count = re.subn(
        r'^version = ".*"$', f'version = "{version}"', manifest.read_text(), count=1, flags=re.MULTILINE
    )
    if graph is not None:
        (target / "model.onnx").unlink()
        (target / "model.onnx").write_bytes(graph)
        entry = f'path = "model.onnx"\nsize = {len(graph)}\nsha256 = "{hashlib.sha256(graph).hexdigest()}"'
        text, found = re.subn(r'path = "model\.onnx"\nsize = \d+\nsha256 = "[0-9a-f]+"', entry, text)
        count = min(count, found)
    assert count == 1
    manifest.unlink()
    manifest.write_text(text)
    return target
