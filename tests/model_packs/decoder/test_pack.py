"""A decoder pack from a Hugging Face folder, through the whole builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType

from appliance.packs.manifest import Profile, read_manifest
from model_packs.build import build_pack
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.pack import TEMPLATES, DecoderOptions, write_decoder
from model_packs.errors import BuildError, QualityError, RecipeError
from model_packs.recipe import parse_recipe
from tests.model_packs.decoder import tiny
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TinyModel, recipe_text
from tests.model_packs.decoder.tiny_gguf import write_gguf

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
    "options",
    [
        "block_size = 48",
        "context_length = 0",
        'tool_format = "xml"',
        "bits = 5",
        'chat_template = "../chatml"',
        'chat_template = "unheard-of"',
        "throughput_is_exact = true",
    ],
)
def test_unknown_options_are_refused(options: str, tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path / "tiny-model")
    source = 'type = "folder"\npath = "tiny-model"\nversion = "7"'
    recipe = parse_recipe(recipe_text("tiny", members, source, f"{tiny.LIMITS}[options]\n{options}\n"))
    with pytest.raises(BuildError, match="options"):
        build_pack(recipe, tmp_path / "cache", recipes=tmp_path)


SOURCE = 'type = "folder"\npath = "tiny-model"\nversion = "7"'
LOOSE = "perplexity = { max_ratio = 1.05 }\n"


def throughput_recipe(limits: str, options: str = "") -> str:
    return f"[quality]\n{LOOSE}{limits}\n[options]\nthroughput = true\n{options}"


def build(extra: str, folder: Path) -> Path:
    members = TinyModel(inner=128).save(folder / "tiny-model")
    recipe = parse_recipe(recipe_text("tiny", members, SOURCE, extra))
    return build_pack(recipe, folder / "cache", recipes=folder)


def test_pack_with_profiles_has_a_graph_and_figures_for_each(tmp_path: Path) -> None:
    limits = f"[profile_quality.throughput]\n{LOOSE}top1_agreement = {{ min = 0.7 }}"
    pack = build(throughput_recipe(limits), tmp_path)
    manifest = read_manifest(pack)
    decoder = manifest.decoder
    assert decoder is not None
    assert decoder.profiles == [Profile(name="throughput", graph="throughput.onnx")]
    assert {"throughput.onnx", "throughput.onnx.data"} <= {file.path for file in manifest.file}
    for profile, limit in ((None, None), ("throughput", 0.7)):
        figures = {figure.metric: figure for figure in manifest.quality if figure.profile == profile}
        assert set(figures) == {"perplexity", "kl_divergence", "top1_agreement"}
        assert 0 < figures["kl_divergence"].value < 0.05
        assert figures["top1_agreement"].limit == limit
    exact, fast = (
        Running(pack / graph).prefill(list(range(65, 95)), 8) for graph in ("model.onnx", "throughput.onnx")
    )
    assert not np.array_equal(exact, fast)
    assert np.corrcoef(exact.ravel(), fast.ravel())[0, 1] > 0.99


def test_the_exact_profile_may_run_by_the_other_graph(tmp_path: Path) -> None:
    limits = f"[profile_quality.throughput]\n{LOOSE}"
    decoder = read_manifest(build(throughput_recipe(limits, "throughput_is_exact = true"), tmp_path)).decoder
    assert decoder is not None
    assert decoder.profile("exact") == Profile(
        name="exact", graph="model.onnx", alternative="throughput.onnx"
    )
    assert decoder.profile("throughput") == Profile(name="throughput", graph="throughput.onnx")


def test_a_profile_that_lost_too_much_fails_the_build(tmp_path: Path) -> None:
    limits = "[profile_quality.throughput]\nkl_divergence = { max = 1e-9 }"
    with pytest.raises(QualityError, match=r"throughput: kl_divergence .* breaks its limit 1e-09"):
        build(throughput_recipe(limits), tmp_path)
    assert [path.name for path in (tmp_path / "cache" / "packs").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (throughput_recipe(""), r"\[profile_quality.throughput\] must limit"),
        (
            throughput_recipe(
                "[profile_quality.throughput]\nperplexity = { max_ratio = 1.06 }",
                "throughput_is_exact = true",
            ),
            "limit of perplexity must be the same",
        ),
        (
            f"[quality]\n{LOOSE}[profile_quality.throughput]\n{LOOSE}",
            "perplexity was not measured for the profile throughput",
        ),
        (f"[quality]\n{LOOSE}[profile_quality.turbo]\n{LOOSE}", "turbo"),
        (f"[quality]\n{LOOSE}[profile_quality.throughput]\nperplexity = {{}}", "has no bound"),
    ],
)
def test_recipes_whose_profiles_do_not_fit_are_refused(extra: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=words):
        build(extra, tmp_path)


@pytest.mark.parametrize("block_size", [32, 64])
def test_float_sources_may_have_four_bits(block_size: int, tmp_path: Path) -> None:
    limits = "[quality]\nkl_divergence = { max = 1.0 }\n"
    pack = build(f"{limits}[options]\nbits = 4\nblock_size = {block_size}\n", tmp_path)
    figure = next(f for f in read_manifest(pack).quality if f.metric == "kl_divergence")
    assert figure.value > 0.01
    graph = onnx.load(pack / "model.onnx", load_external_data=False).graph
    bits = {
        node.name: next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    assert bits.pop("head.out") == 8
    assert set(bits.values()) == {4}


def test_quantised_sources_may_not(tmp_path: Path) -> None:
    path = write_gguf(TinyModel(), tmp_path / "model.gguf", GGMLQuantizationType.Q4_1)
    with pytest.raises(RecipeError, match="quantised already"):
        write_decoder(read_gguf(path), DecoderOptions(bits=4), tmp_path)


def test_a_recipe_may_bring_its_own_chat_template(tmp_path: Path) -> None:
    pack = build(f'{tiny.LIMITS}[options]\nchat_template = "chatml-hermes"\n', tmp_path)
    decoder = read_manifest(pack).decoder
    assert decoder is not None
    assert decoder.chat_template is not None
    assert (pack / decoder.chat_template).read_bytes() == (TEMPLATES / "chatml-hermes.jinja").read_bytes()
