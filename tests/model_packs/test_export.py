"""Packs exported through optimum, each compared with the forward pass in torch (``make test-export``)."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.reranking import RerankEngine
from appliance.packs.manifest import Manifest, read_manifest
from model_packs.build import build_pack
from model_packs.errors import BuildError
from model_packs.export import export_python, run_export
from model_packs.fetch import file_sha256
from model_packs.recipe import parse_recipe
from tests.packs_fixture import built_pack

pytestmark = pytest.mark.export

RECIPE = """
name = "tiny-{kind}"
kind = "{builder}"
default = false
version = "1"
task = "{task}"
engine = "{engine}"
description = "random weights"
license = "Apache-2.0"
owned_by = "tests"
created = 1
{quality}
{options}
[[source]]
type = "folder"
path = "{folder}"
version = "1"
license = "Apache-2.0"
[source.members]
{members}
"""
ENCODER_OPTIONS = '[options]\ncontext_length = 128\npooling = "{pooling}"\n'


def tiny_model(kind: str, folder: Path) -> Path:
    script = Path(__file__).with_name("tiny_models.py")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([export_python(), str(script), kind, str(folder)], check=True, timeout=300)
    return folder


def recipe_text(
    kind: str, builder: str, task: str, engine: str, folder: Path, quality: str, options: str
) -> str:
    members = "\n".join(
        f'"{path.name}" = {{ path = "{path.name}", sha256 = "{file_sha256(path)}" }}'
        for path in sorted(folder.iterdir())
    )
    return RECIPE.format(
        kind=kind, builder=builder, task=task, engine=engine, folder=folder, members=members,
        quality=quality, options=options,
    )  # fmt: skip


def built(text: str, cache: Path) -> tuple[Path, Manifest]:
    cache.mkdir(exist_ok=True)
    pack = build_pack(parse_recipe(text), cache)
    return pack, read_manifest(pack)


def figures(manifest: Manifest) -> dict[str, float]:
    return {figure.metric: figure.value for figure in manifest.quality}


def test_a_llama_style_decoder_is_exported_and_agrees_with_torch(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "llama")
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    quality = "[quality]\ntop1_agreement = { min = 1.0 }\nlogit_difference_max = { max = 0.001 }"
    text = recipe_text("llama", "optimum-decoder", "chat", "onnx", folder, quality, "")
    pack, manifest = built(text, tmp_path / "cache")
    assert manifest.decoder is not None
    assert (manifest.decoder.layers, manifest.decoder.kv_heads, manifest.decoder.head_dim) == (2, 2, 16)
    assert manifest.context_length == 256
    assert figures(manifest)["logit_difference_max"] < 1e-3
    inputs = {node.name for node in Cores().session(pack / "model.onnx").get_inputs()}
    assert {"input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.1.value"} <= inputs


def test_the_rotary_base_of_transformers_5_is_not_lost(tmp_path: Path) -> None:
    """With the wrong base the export would agree with torch all the same: both would be wrong."""
    folder = tiny_model("llama", tmp_path / "llama")
    members = {path.name: path for path in folder.iterdir()}
    # Random weights attend to everything alike; a long prompt makes positions matter.
    prompt = [{"input_ids": [3 + n * 7 % 250 for n in range(200)]}]
    (nested,) = run_export(members, _fresh(tmp_path, "nested"), "text-generation-with-past", prompt)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    (plain,) = run_export(members, _fresh(tmp_path, "plain"), "text-generation-with-past", prompt)
    np.testing.assert_allclose(nested, plain, atol=1e-5)
    config["rope_theta"] = 10_000.0
    (folder / "config.json").write_text(json.dumps(config))
    (other,) = run_export(members, _fresh(tmp_path, "other"), "text-generation-with-past", prompt)
    assert np.abs(other - plain).max() > 1e-2


async def test_a_tiny_encoder_is_exported_quantised_and_served(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "bert")
    options = ENCODER_OPTIONS.format(pooling="mean")
    quality = "[quality]\ncosine_min = { min = 0.99 }\nbatch_cosine_min = { min = 0.9999 }"
    text = recipe_text("bert", "optimum-encoder", "embedding", "encoder-onnx", folder, quality, options)
    pack, manifest = built(text, tmp_path / "cache")
    engine = EmbeddingEngine(pack, manifest, Cores())
    try:
        vectors = await engine.embed(await engine.tokenize(["one text", "another, longer text"]))
        assert vectors.shape == (2, 64)
    finally:
        await asyncio.to_thread(engine.close)


async def test_a_tiny_cross_encoder_is_exported_quantised_and_served(tmp_path: Path) -> None:
    folder = tiny_model("cross-encoder", tmp_path / "cross")
    options = ENCODER_OPTIONS.format(pooling="none")
    quality = "[quality]\nscore_difference_max = { max = 0.02 }"
    text = recipe_text("cross", "optimum-encoder", "rerank", "encoder-onnx", folder, quality, options)
    pack, manifest = built(text, tmp_path / "cache")
    engine = RerankEngine(pack, manifest, Cores())
    try:
        scores = await engine.score("a question", ["an answer", "something else " * 100])
        assert scores.logits.shape == (2,)
    finally:
        await asyncio.to_thread(engine.close)


async def test_the_real_all_minilm_pack_agrees_with_torch_and_makes_sense() -> None:
    pack = built_pack("all-minilm-l6-v2")
    manifest = read_manifest(pack)
    assert figures(manifest)["cosine_mean"] > 0.998
    engine = EmbeddingEngine(pack, manifest, Cores())
    try:
        king, queen, banana = await engine.embed(await engine.tokenize(["a king", "a queen", "a banana"]))
        assert king @ queen > king @ banana + 0.1
    finally:
        await asyncio.to_thread(engine.close)


def test_a_failed_export_says_why(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"not weights")
    members = {path.name: path for path in folder.iterdir()}
    with pytest.raises(BuildError, match="the export failed"):
        run_export(members, _fresh(tmp_path, "broken"), "feature-extraction", [{"input_ids": [1, 2]}], "mean")


def _fresh(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name / "exported"
