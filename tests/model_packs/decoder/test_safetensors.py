"""Hugging Face folders: sharded files, special tokens, and everything that is refused instead of guessed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_packs.decoder.safetensors_file import SafetensorsFiles
from model_packs.decoder.safetensors_source import read_safetensors
from model_packs.errors import BuildError
from tests.model_packs.decoder.tiny import TinyModel, write_safetensors


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    model = TinyModel()
    members = model.save(tmp_path)
    names = list(model.weights)
    for shard, part in enumerate((names[:9], names[9:]), start=1):
        path = tmp_path / f"model-0000{shard}-of-00002.safetensors"
        write_safetensors(path, {name: model.weights[name] for name in part})
        members[path.name] = path
    del members["model.safetensors"]
    weights = read_safetensors(members)
    np.testing.assert_array_equal(weights.tensor("final_norm"), model.weights["model.norm.weight"])
    np.testing.assert_array_equal(
        weights.tensor("layer.1.down"), model.weights["model.layers.1.mlp.down_proj.weight"]
    )


def test_special_tokens_and_template(tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path)
    weights = read_safetensors(members)
    assert (weights.bos_token, weights.eos_token, weights.eos_token_ids) == ("<|bos|>", "<|end|>", [258])
    assert weights.chat_template == "{{ messages }}"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [258, 257]}')
    (tmp_path / "chat_template.jinja").write_text("newer")
    weights = read_safetensors({path.name: path for path in tmp_path.iterdir()})
    assert weights.eos_token_ids == [258, 257]
    assert weights.chat_template == "newer"


def test_end_token_is_found_by_its_text_when_no_number_is_given(tmp_path: Path) -> None:
    weights = read_safetensors(TinyModel(config={"eos_token_id": None}).save(tmp_path))
    assert weights.eos_token_ids == [258]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "incomplete"),
        ({"sliding_window": 32}, "sliding"),
        ({"attention_bias": True}, "bias"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"num_key_value_heads": 3}, "share"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"eos_token_id": 5000}, "ends a text"),
    ],
)
def test_what_is_not_served_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=message):
        read_safetensors(TinyModel(config=config).save(tmp_path))


def test_tensors_must_have_the_shape_the_configuration_says(tmp_path: Path) -> None:
    weights = read_safetensors(TinyModel(config={"intermediate_size": 128}).save(tmp_path))
    with pytest.raises(BuildError, match="shape"):
        weights.tensor("layer.0.gate")


def test_missing_tensors_and_files_are_named(tmp_path: Path) -> None:
    model = TinyModel()
    del model.weights["model.layers.1.mlp.up_proj.weight"]
    members = model.save(tmp_path)
    with pytest.raises(BuildError, match="up_proj"):
        read_safetensors(members).tensor("layer.1.up")
    del members["tokenizer.json"]
    with pytest.raises(BuildError, match=r"tokenizer\.json"):
        read_safetensors(members)


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float32)})
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(BuildError):
        SafetensorsFiles([path]).tensor("a", (3, 4))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [8, 0]},
        {"dtype": "F32"},
        [],
    ],
)
def test_headers_that_point_outside_are_refused(entry: Any, tmp_path: Path) -> None:
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(BuildError):
        SafetensorsFiles([path])
