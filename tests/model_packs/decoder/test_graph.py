"""The graph computes what a Llama-style decoder computes: compared with a forward pass in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_packs.decoder.graph import GraphForm, write_graph
from model_packs.decoder.profiles import FLOAT, exact_form, throughput_form
from model_packs.decoder.rotation import Rotation
from model_packs.decoder.safetensors_source import read_safetensors
from model_packs.decoder.tensor_file import Stored
from tests.model_packs.decoder.running import FloatArray, Running
from tests.model_packs.decoder.tiny import TinyModel

TOKENS = np.random.default_rng(3).integers(0, 256, 40).tolist()


def log_softmax(logits: FloatArray) -> FloatArray:
    shifted: FloatArray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def graph_of(model: TinyModel, folder: Path, form: GraphForm, kind: str = "F32") -> Path:
    weights = read_safetensors(model.save(folder / "source", kind))
    write_graph(weights, folder / "model.onnx", form)
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
    graph = graph_of(model, tmp_path, FLOAT)
    np.testing.assert_allclose(Running(graph).prefill(TOKENS, chunk), model.logits(TOKENS), atol=2e-4)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("tied", [True, False])
def test_eight_bit_graph_stays_close(block_size: int, tied: bool, tmp_path: Path) -> None:
    model = TinyModel(tied=tied)
    own = log_softmax(Running(graph_of(model, tmp_path, exact_form(block_size))).prefill(TOKENS, 16))
    true = log_softmax(model.logits(TOKENS).astype(np.float32))
    assert (np.exp(true) * (true - own)).sum(axis=1).mean() < 0.02


@pytest.mark.parametrize(
    "model",
    [TinyModel(), TinyModel(tied=False, hidden=96), TinyModel(biased=True, kv_heads=4)],
    ids=["tied", "own-head", "qkv-bias"],
)
def test_rotated_float_graph_equals_the_reference(model: TinyModel, tmp_path: Path) -> None:
    graph = graph_of(model, tmp_path, dataclasses.replace(FLOAT, rotation=Rotation(model.hidden)))
    np.testing.assert_allclose(Running(graph).prefill(TOKENS, 7), model.logits(TOKENS), atol=5e-3)


@pytest.mark.parametrize(
    ("form", "bound"),
    [(throughput_form(32, 64), 0.02), (exact_form(32, 4), 0.5), (exact_form(64, 4), 0.5)],
    ids=["throughput", "four-bit", "four-bit-64"],
)
def test_other_forms_stay_close(form: GraphForm, bound: float, tmp_path: Path) -> None:
    model = TinyModel(inner=128)
    own = log_softmax(Running(graph_of(model, tmp_path, form)).prefill(TOKENS, 16))
    true = log_softmax(model.logits(TOKENS).astype(np.float32))
    assert (np.exp(true) * (true - own)).sum(axis=1).mean() < bound


def test_graphs_of_one_folder_store_what_they_share_once(tmp_path: Path) -> None:
    weights = read_safetensors(TinyModel().save(tmp_path / "source"))
    stored: Stored = {}
    write_graph(weights, tmp_path / "model.onnx", exact_form(32), stored)
    write_graph(weights, tmp_path / "fast.onnx", throughput_form(32, 64), stored)
    graph = onnx.load(tmp_path / "fast.onnx", load_external_data=False).graph
    files = {
        tensor.name: next(entry.value for entry in tensor.external_data if entry.key == "location")
        for tensor in graph.initializer
        if tensor.external_data
    }
    shared = {name for name, file in files.items() if file == "model.onnx.data"}
    assert {"embedding.weight", "embedding.scales", "rotary.cos", "rotary.sin"} <= shared
    assert {files[f"layer.0.{part}.weight"] for part in ("qkv", "o", "gate_up", "down")} == {"fast.onnx.data"}
    alone = tmp_path / "alone"
    alone.mkdir()
    write_graph(weights, alone / "fast.onnx", throughput_form(32, 64))
    np.testing.assert_array_equal(
        Running(tmp_path / "fast.onnx").prefill(TOKENS, 16), Running(alone / "fast.onnx").prefill(TOKENS, 16)
    )


def test_graphs_continue_each_others_cache(tmp_path: Path) -> None:
    model = TinyModel()
    weights = read_safetensors(model.save(tmp_path / "source"))
    write_graph(weights, tmp_path / "model.onnx", exact_form(32))
    write_graph(weights, tmp_path / "fast.onnx", throughput_form(32, 64))
    exact, fast = Running(tmp_path / "model.onnx"), Running(tmp_path / "fast.onnx")
    exact.cache = fast.cache
    fast.prefill(TOKENS[:20], 20)
    own = log_softmax(exact.step([TOKENS[20:]], [40], list(range(20))))
    true = log_softmax(model.logits(TOKENS)[20:].astype(np.float32))
    assert (np.exp(true) * (true - own)).sum(axis=1).mean() < 0.02


@pytest.mark.parametrize(
    "form", [FLOAT, exact_form(32), throughput_form(32, 64)], ids=["float", "exact", "fast"]
)
def test_rows_of_a_batch_do_not_see_one_another(form: GraphForm, tmp_path: Path) -> None:
    graph = graph_of(TinyModel(), tmp_path, form)
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


def test_a_row_of_sixteen_is_the_same_alone(tmp_path: Path) -> None:
    graph = graph_of(TinyModel(layers=3, hidden=96), tmp_path, throughput_form(32, 96))
    together = Running(graph, rows=16)
    prompts = [TOKENS[row : 2 * row + 3] for row in range(16)]
    for row, prompt in enumerate(prompts):
        together.prefill(prompt, 16, row)
    lengths = [len(prompt) + 1 for prompt in prompts]
    batched = together.step([[100 + row] for row in range(16)], lengths, list(range(16)))
    for row, prompt in enumerate(prompts):
        alone = Running(graph)
        alone.prefill(prompt, 16)
        np.testing.assert_array_equal(alone.step([[100 + row]], [lengths[row]], [0])[0], batched[row])


def test_only_wanted_rows_get_logits(tmp_path: Path) -> None:
    graph = graph_of(TinyModel(), tmp_path, exact_form(32))
    everything = Running(graph).prefill(TOKENS[:12], 12)
    some = Running(graph).step([TOKENS[:12]], [12], [11, 2])
    np.testing.assert_allclose(some, everything[[11, 2]], atol=1e-5)


def test_half_precision_sources(tmp_path: Path) -> None:
    model = TinyModel()
    for kind in ("F16", "BF16"):
        graph = graph_of(model, tmp_path / kind, FLOAT, kind)
        logits = Running(graph).prefill(TOKENS, 40)
        correlation = np.corrcoef(logits.ravel(), model.logits(TOKENS).ravel())[0, 1]
        assert correlation > (0.99999 if kind == "F16" else 0.999)


def test_rope_theta_is_found_where_newer_transformers_put_it(tmp_path: Path) -> None:
    model = TinyModel(
        config={"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
    )
    logits = Running(graph_of(model, tmp_path, FLOAT)).prefill(TOKENS, 40)
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
    logits = Running(graph_of(model, tmp_path, FLOAT)).prefill(TOKENS, 40)
    np.testing.assert_allclose(logits, model.logits(TOKENS, np.array(scaled)), atol=2e-4)
    assert not np.allclose(logits, model.logits(TOKENS), atol=0.1)
