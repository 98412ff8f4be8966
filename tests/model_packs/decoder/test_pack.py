"""A decoder pack from a Hugging Face folder, through the whole builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.packs.manifest import read_manifest
from model_packs.build import build_pack
from model_packs.errors import BuildError, QualityError
from model_packs.recipe import parse_recipe
from tests.model_packs.decoder import tiny
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TinyModel, recipe_text

LIMITS = """
[quality]
kl_divergence = { max = 0.05 }
perplexity = { max_ratio = 1.05 }
top1_agreement = { min = 0.8 }
[options]
tool_format = "hermes"
"""


def test_folder_becomes_a_pack(tmp_path: Path) -> None:
    model = TinyModel(tied=False)
    members = model.save(tmp_path / "tiny-model")
    recipe = parse_recipe(
        recipe_text("tiny", members, 'type = "folder"\npath = "tiny-model"\nversion = "7"', LIMITS)
    )
    pack = build_pack(recipe, tmp_path / "cache", recipes=tmp_path)
    manifest = read_manifest(pack)
    assert {file.path for file in manifest.file} == {
        "model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    assert {path.name for path in pack.iterdir()} == {"pack.toml", *(file.path for file in manifest.file)}
    decoder = manifest.decoder
    assert decoder is not None
    assert (decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.vocab_size) == (2, 2, 16, 259)
    assert (decoder.tool_format, decoder.eos_token_ids) == ("hermes", [258])
    assert manifest.context_length == 256
    assert manifest.parameters == sum(weights.size for weights in model.weights.values())
    assert (manifest.source[0].package, manifest.source[0].version) == ("tiny-model", "7")
    figures = {figure.metric: figure for figure in manifest.quality}
    assert 0 < figures["kl_divergence"].value <= 0.05
    assert figures["perplexity"].reference is not None
    assert figures["top1_agreement"].limit == 0.8
    tokens = list(range(65, 95))
    logits = Running(pack / decoder.graph).prefill(tokens, 8)
    assert np.corrcoef(logits.ravel(), model.logits(tokens).ravel())[0, 1] > 0.99


def test_build_that_lost_too_much_fails_with_its_figures(tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path / "tiny-model")
    limits = "[quality]\nkl_divergence = { max = 1e-9 }\n"
    source = 'type = "folder"\npath = "tiny-model"\nversion = "7"'
    recipe = parse_recipe(recipe_text("tiny", members, source, limits))
    with pytest.raises(QualityError, match=r"kl_divergence .* breaks its limit 1e-09.*perplexity"):
        build_pack(recipe, tmp_path / "cache", recipes=tmp_path)
    assert [path.name for path in (tmp_path / "cache" / "packs").iterdir() if path.is_dir()] == []


def test_weights_that_changed_after_pinning_are_refused(tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path / "tiny-model")
    source = 'type = "folder"\npath = "tiny-model"\nversion = "7"'
    recipe = parse_recipe(recipe_text("tiny", members, source))
    with members["model.safetensors"].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(BuildError, match=r"model\.safetensors: wrong SHA-256"):
        build_pack(recipe, tmp_path / "cache", recipes=tmp_path)


@pytest.mark.parametrize(
    "options", ["block_size = 48", "context_length = 0", 'tool_format = "xml"', "bits = 4"]
)
def test_unknown_options_are_refused(options: str, tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path / "tiny-model")
    source = 'type = "folder"\npath = "tiny-model"\nversion = "7"'
    recipe = parse_recipe(recipe_text("tiny", members, source, f"{tiny.LIMITS}[options]\n{options}\n"))
    with pytest.raises(BuildError, match="options"):
        build_pack(recipe, tmp_path / "cache", recipes=tmp_path)
