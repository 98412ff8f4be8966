"""Kind ``decoder-gguf``: member ``model.gguf``, a Llama-style decoder of any ggml quantisation."""

from __future__ import annotations

from pathlib import Path

from model_packs.build import PackParts
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.pack import decoder_options, write_decoder
from model_packs.errors import RecipeError
from model_packs.recipe import Recipe


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Write the pack of ``model.gguf`` into ``out``. Raises BuildError."""
    options = decoder_options(recipe)
    if "model.gguf" not in members:
        raise RecipeError(f"{recipe.name}: kind {recipe.kind} needs the member model.gguf")
    return write_decoder(read_gguf(members["model.gguf"], options.context_length), options, out)
