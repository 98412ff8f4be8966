"""A decoder pack from a GGUF file, whole or in slices, through the whole builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.packs.manifest import read_manifest
from model_packs.build import build_pack
from model_packs.errors import RecipeError
from model_packs.recipe import Recipe, parse_recipe
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TinyModel, recipe_text
from tests.model_packs.decoder.tiny_gguf import write_gguf

SOURCE = 'type = "folder"\npath = "tiny-model"\nversion = "7"'


def recipe(members: dict[str, Path]) -> Recipe:
    text = recipe_text("tiny", members, SOURCE)
    return parse_recipe(text.replace("decoder-safetensors", "decoder-gguf"))


def sliced(folder: Path, numbers: list[str]) -> dict[str, Path]:
    """Write a tiny Qwen2 in as many slices as there are numbers, the last one short; return them by name."""
    folder.mkdir()
    whole = write_gguf(
        TinyModel(biased=True), folder / "whole.gguf", architecture="qwen2", pre="qwen2"
    ).read_bytes()
    size = -(-len(whole) // len(numbers))
    members = {}
    for place, number in enumerate(numbers):
        path = folder / f"model.gguf.part{number}"
        path.write_bytes(whole[place * size : (place + 1) * size])
        members[path.name] = path
    return members


@pytest.mark.parametrize("form", ["{:02}", "{}"])
def test_slices_are_joined_in_the_order_of_their_numbers(form: str, tmp_path: Path) -> None:
    members = sliced(tmp_path / "tiny-model", [form.format(number) for number in range(1, 12)])
    pack = build_pack(recipe(members), tmp_path / "cache", recipes=tmp_path)
    manifest = read_manifest(pack)
    assert {path.name for path in pack.iterdir()} == {"pack.toml", *(file.path for file in manifest.file)}
    model = TinyModel(biased=True)
    assert manifest.parameters == sum(weights.size for weights in model.weights.values())
    tokens = list(range(65, 95))
    logits = Running(pack / "model.onnx").prefill(tokens, 8)
    assert np.corrcoef(logits.ravel(), model.logits(tokens).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("numbers", [["01", "03"], ["00", "01"], ["1", "01"], ["02"]])
def test_slices_that_do_not_count_from_one_are_refused(numbers: list[str], tmp_path: Path) -> None:
    members = sliced(tmp_path / "tiny-model", numbers)
    with pytest.raises(RecipeError, match="numbered from 1 without a gap"):
        build_pack(recipe(members), tmp_path / "cache", recipes=tmp_path)


def test_a_model_is_either_whole_or_in_slices(tmp_path: Path) -> None:
    members = sliced(tmp_path / "tiny-model", ["01", "02"])
    whole = tmp_path / "tiny-model" / "model.gguf"
    (tmp_path / "tiny-model" / "whole.gguf").rename(whole)
    for given in (members | {"model.gguf": whole}, {"other.gguf.part01": members["model.gguf.part01"]}):
        renamed = {name: path.rename(path.with_name(name)) for name, path in given.items()}
        with pytest.raises(RecipeError, match=r"needs the member model\.gguf, or"):
            build_pack(recipe(renamed), tmp_path / "cache", recipes=tmp_path)
