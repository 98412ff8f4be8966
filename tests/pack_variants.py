"""Packs like the default chat pack, but for its chat template and tool format."""

from __future__ import annotations

import hashlib
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
