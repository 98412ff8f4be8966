"""Kind ``decoder-gguf``: member ``model.gguf``, a Llama-style decoder of any ggml quantisation.

A file that its source cut into slices comes as ``model.gguf.part01``, ``model.gguf.part02``, ….
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from model_packs.build import PackParts
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.pack import decoder_options, write_decoder
from model_packs.errors import RecipeError
from model_packs.recipe import Recipe

MODEL_FILE = "model.gguf"
_PART = re.compile(rf"{re.escape(MODEL_FILE)}\.part([0-9]{{1,4}})")
_COPY_BYTES = 1 << 20

# What each form of tool calls writes between its tokens. Converters make control tokens of some of
# them; as such they would be missing from the text in which calls are looked for.
_TOOL_MARKS = {"hermes": ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")}


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Write the pack of ``model.gguf`` into ``out``. Raises BuildError."""
    options = decoder_options(recipe)
    parts = _parts(recipe, members)
    shown = _TOOL_MARKS.get(options.tool_format, ())
    with tempfile.TemporaryDirectory(dir=out, prefix=".joined-") as folder:
        model = _joined(parts, Path(folder) / MODEL_FILE) if parts else members[MODEL_FILE]
        return write_decoder(read_gguf(model, options.context_length, shown), options, out)


def _parts(recipe: Recipe, members: dict[str, Path]) -> list[Path]:
    """Return the slices of the model in their order, none when it is whole.

    Raises RecipeError when there is neither, or both, or a slice is missing.
    """
    numbered = sorted(
        (int(found[1]), path) for name, path in members.items() if (found := _PART.fullmatch(name))
    )
    if (MODEL_FILE in members) == bool(numbered):
        raise RecipeError(
            f"{recipe.name}: kind {recipe.kind} needs the member {MODEL_FILE}, or {MODEL_FILE}.part01 and so on"
        )
    if [number for number, _ in numbered] != list(range(1, len(numbered) + 1)):
        raise RecipeError(f"{recipe.name}: the parts of {MODEL_FILE} must be numbered from 1 without a gap")
    return [path for _, path in numbered]


def _joined(parts: list[Path], target: Path) -> Path:
    """Write ``parts`` one after another into ``target`` and return it."""
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, _COPY_BYTES)
    return target
