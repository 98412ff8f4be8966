"""Kind ``decoder-safetensors``: the files of a Hugging Face folder, members named as they are there."""

from __future__ import annotations

from pathlib import Path

from model_packs.build import PackParts
from model_packs.decoder.pack import decoder_options, write_decoder
from model_packs.decoder.safetensors_source import read_safetensors
from model_packs.recipe import Recipe


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Write the pack of ``config.json``, ``tokenizer.json`` and ``*.safetensors`` into ``out``. Raises BuildError."""
    options = decoder_options(recipe)
    return write_decoder(read_safetensors(members, options.context_length), options, out)
