"""The graph computes what a Llama-style decoder computes: compared with a forward pass in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_packs.decoder.graph import write_graph
from model_packs.decoder.safetensors_source import read_safetensors
from tests.model_packs.decoder.running import FloatArray, Running
from tests.model_packs.decoder.tiny import TinyModel

TOKENS = np.random.default_rng(3).integers(0, 256, 40).tolist()


def log_softmax(logits: FloatArray) -> FloatArray:
    shifted: FloatArray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def graph_of(model: TinyModel, folder: Path, block_size: int | None, kind: str = "F32") -> Path:
    weights = read_safetensors(model.save(folder / "source", kind))
    write_graph(weights, folder / "model.onnx", block_size)
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "model",
    [
        TinyModel(),
        TinyModel(tied=False, heads=6, kv_heads=2),
        TinyModel(biased=True, kv_heads=4),
        TinyModel(layers=1, kv_heads=1, head_dim=32),
    ],
    ids=["tied", "own-head", "qkv-bias", "one-kv-head"],
)
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_float_graph_equals_the_reference(model: TinyModel, chunk: int, tmp_path: Path) -> None:
    graph = graph_of(model, tmp_path, None)
    np.testing.assert_allclose(Running(graph).prefill(TOKENS, chunk), model.logits(TOKENS), atol=2e-4)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("tied", [True, False])
def test_eight_bit_graph_stays_close(block_size: int, tied: bool, tmp_path: Path) -> None:
    model = TinyModel(tied=tied)
    own = log_softmax(Running(graph_of(model, tmp_path, block_size)).prefill(TOKENS, 16))
    true = log_softmax(model.logits(TOKENS).astype(np.float32))
    assert (np.exp(true) * (true - own)).sum(axis=1).mean() < 0.02


@pytest.mark.parametrize("block_size", [None, 32])
def test_rows_of_a_batch_do_not_see_one_another(block_size: int | None, tmp_path: Path) -> None:
    graph = graph_of(TinyModel(), tmp_path, block_size)
    prompts = [TOKENS[:5], TOKENS[3:20], TOKENS[9:10]]
    together = Running(graph, rows=3)
    for row, prompt in enumerate(prompts):
        together.prefill(prompt, 16, row)
    lengths = [len(prompt) + 1 for prompt in prompts]
    batched = together.step([[65], [66], [67]], lengths, [0, 1, 2])
    for row, prompt in enumerate(prompts):
        alone = Running(graph)
        alone.prefill(prompt, 16)
        np.testing.assert_array_equal(alone.step([[65 + row]], [lengths[row]], [0])[0], batched[row])


def test_only_wanted_rows_get_logits(tmp_path: Path) -> None:
    graph = graph_of(TinyModel(), tmp_path, 32)
    everything = Running(graph).prefill(TOKENS[:12], 12)
    some = Running(graph).step([TOKENS[:12]], [12], [11, 2])
    np.testing.assert_allclose(some, everything[[11, 2]], atol=1e-5)


def test_half_precision_sources(tmp_path: Path) -> None:
    model = TinyModel()
    for kind in ("F16", "BF16"):
        graph = graph_of(model, tmp_path / kind, None, kind)
        logits = Running(graph).prefill(TOKENS, 40)
        correlation = np.corrcoef(logits.ravel(), model.logits(TOKENS).ravel())[0, 1]
        assert correlation > (0.99999 if kind == "F16" else 0.999)


def test_rope_theta_is_found_where_newer_transformers_put_it(tmp_path: Path) -> None:
    model = TinyModel(
        config={"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
    )
    logits = Running(graph_of(model, tmp_path, None)).prefill(TOKENS, 40)
    np.testing.assert_allclose(logits, model.logits(TOKENS), atol=2e-4)


def test_llama3_scaling_keeps_fast_waves_and_stretches_slow_ones(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = TinyModel(config={"rope_scaling": scaling})
    scaled = []
    for frequency in model.frequencies():
        wavelength = 2 * np.pi / frequency
        if wavelength < 64 / 4:
            scaled.append(frequency)
        elif wavelength > 64:
            scaled.append(frequency / 8)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            scaled.append((1 - smooth) * frequency / 8 + smooth * frequency)
    logits = Running(graph_of(model, tmp_path, None)).prefill(TOKENS, 40)
    np.testing.assert_allclose(logits, model.logits(TOKENS, np.array(scaled)), atol=2e-4)
    assert not np.allclose(logits, model.logits(TOKENS), atol=0.1)
