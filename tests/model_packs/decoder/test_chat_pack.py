"""The default chat pack: the real model, as the recipe builds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from appliance.packs.manifest import Manifest, Profile, read_manifest
from tests.model_packs.decoder.running import Running
from tests.packs_fixture import built_pack

GRAPHS = ("model.onnx", "throughput.onnx")


@pytest.fixture(scope="module")
def pack() -> Path:
    return built_pack("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def manifest(pack: Path) -> Manifest:
    return read_manifest(pack)


@pytest.fixture(scope="module")
def tokenizer(pack: Path) -> Tokenizer:
    return Tokenizer.from_file(str(pack / "tokenizer.json"))


def test_quality_was_measured_on_enough_text(manifest: Manifest) -> None:
    figures = {figure.metric: figure for figure in manifest.quality if figure.profile is None}
    perplexity = figures["perplexity"]
    assert perplexity.reference is not None
    assert perplexity.value <= perplexity.reference * 1.01
    assert figures["kl_divergence"].value <= 0.006
    assert figures["top1_agreement"].value >= 0.95
    assert int(perplexity.sample.split(", ")[1].split()[0]) >= 1024


def test_throughput_graph_is_good_enough_for_the_prompts_of_the_exact_profile(manifest: Manifest) -> None:
    figures = {figure.metric: figure for figure in manifest.quality if figure.profile == "throughput"}
    perplexity = figures["perplexity"]
    assert perplexity.reference is not None
    assert perplexity.value <= perplexity.reference * 1.01
    assert figures["kl_divergence"].value <= 0.006
    assert manifest.decoder is not None
    assert manifest.decoder.profiles == [
        Profile(name="exact", graph="model.onnx", alternative="throughput.onnx"),
        Profile(name="throughput", graph="throughput.onnx"),
    ]


def test_pack_calls_tools_in_the_format_of_its_template(pack: Path, manifest: Manifest) -> None:
    assert manifest.decoder is not None
    assert manifest.decoder.tool_format == "hermes"
    assert "<tool_call>" in (pack / "chat_template.jinja").read_text(encoding="utf-8")


def test_manifest_describes_the_model(manifest: Manifest) -> None:
    decoder = manifest.decoder
    assert decoder is not None
    assert (manifest.parameters, manifest.context_length) == (134515008, 8192)
    assert (decoder.layers, decoder.kv_heads, decoder.head_dim, decoder.vocab_size) == (30, 3, 64, 49152)
    assert decoder.eos_token_ids[0] == 2


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("In 2024: 1,975").tokens == ["In", "Ġ", *"2024", ":", "Ġ", "1", ",", *"975"]


def test_words_carry_their_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The capital of France is").tokens == ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]


def test_special_tokens_are_single_and_nothing_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n").ids[::2] == [1, 198, 2]
    assert tokenizer.encode("").ids == []


@pytest.mark.parametrize(
    "text", ["naïve café — 東京 🙂\n\n  x = 1\t# ok", "\r\n \u00a0 end ", "don't I'LL 12.5%"]
)
def test_text_survives_the_round_trip(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("graph", GRAPHS)
def test_model_knows_a_plain_fact(graph: str, pack: Path, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("France's capital is Paris. Italy's capital is Rome. Spain's capital is").ids
    logits = Running(pack / graph).prefill(tokens, 16)
    assert tokenizer.decode([int(logits[-1].argmax())]).strip() == "Madrid"


@pytest.mark.parametrize("graph", GRAPHS)
def test_rows_of_a_batch_do_not_see_one_another(graph: str, pack: Path, tokenizer: Tokenizer) -> None:
    text = tokenizer.encode(
        "It is easy to describe how a pump works, and surprisingly hard to do it well"
    ).ids
    prompts = [text[row % 5 : row % 5 + row + 1] for row in range(16)]
    together = Running(pack / graph, rows=16)
    firsts = [int(together.prefill(prompt, 16, row)[-1].argmax()) for row, prompt in enumerate(prompts)]
    lengths = [len(prompt) + 1 for prompt in prompts]
    batched = together.step([[token] for token in firsts], lengths, list(range(16)))
    alone = Running(pack / graph)
    for row, prompt in enumerate(prompts):
        alone.prefill(prompt, 16)
        np.testing.assert_array_equal(alone.step([[firsts[row]]], [lengths[row]], [0])[0], batched[row])
