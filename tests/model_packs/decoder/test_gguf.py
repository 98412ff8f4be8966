"""GGUF files: read like the safetensors of the same model; broken ones refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model_packs.decoder.gguf_file import GgufFile
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.graph import write_graph
from model_packs.decoder.profiles import FLOAT
from model_packs.errors import BuildError
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TOKENS, TYPES, TinyModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    name = name.removesuffix(".weight")
    if name in NAMES:
        return f"{NAMES[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def write_gguf(
    model: TinyModel,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    pre: str = "gpt-2",
    tokenizer: str = "gpt2",
    add_bos: bool | None = None,
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.theta)
    writer.add_layer_norm_rms_eps(model.epsilon)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(257)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_eos_token_id(258)
    writer.add_chat_template("{{ messages }}")
    for name, weights in model.weights.items():
        value: Any = weights
        if "q_proj" in name or "k_proj" in name:
            # What llama.cpp's converter does: halves interleaved into pairs.
            heads = model.heads if "q_proj" in name else model.kv_heads
            value = value.reshape(heads, 2, model.head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
        if value.ndim == 1:
            writer.add_tensor(gguf_name(name), value)
        else:
            writer.add_tensor(gguf_name(name), quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_graph_from_gguf_equals_the_reference(tied: bool, tmp_path: Path) -> None:
    model = TinyModel(tied=tied)
    weights = read_gguf(write_gguf(model, tmp_path / "model.gguf"))
    write_graph(weights, tmp_path / "model.onnx", FLOAT)
    tokens = list(range(60, 100))
    logits = Running(tmp_path / "model.onnx").prefill(tokens, 16)
    np.testing.assert_allclose(logits, model.logits(tokens), atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "is_float"), [("F32", True), ("F16", True), ("BF16", True), ("Q8_0", False)]
)
def test_float_sources_are_told_from_quantised_ones(kind: str, is_float: bool, tmp_path: Path) -> None:
    weights = read_gguf(write_gguf(TinyModel(), tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    assert weights.float_source is is_float


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_stored_types_are_dequantised(kind: str, tmp_path: Path) -> None:
    model = TinyModel()
    weights = read_gguf(write_gguf(model, tmp_path / "model.gguf", GGMLQuantizationType[kind]))
    step = {"F16": 0.001, "BF16": 0.01, "Q8_0": 0.01, "Q4_1": 0.1}[kind]
    for name, stored in (
        ("layer.1.down", "model.layers.1.mlp.down_proj"),
        ("embedding", "model.embed_tokens"),
    ):
        np.testing.assert_allclose(weights.tensor(name), model.weights[f"{stored}.weight"], atol=step)
    np.testing.assert_allclose(
        weights.tensor("layer.0.q"), model.weights["model.layers.0.self_attn.q_proj.weight"], atol=step
    )


def test_tokenizer_and_special_tokens(tmp_path: Path) -> None:
    weights = read_gguf(write_gguf(TinyModel(), tmp_path / "model.gguf"), context_length=100)
    assert weights.config.context_length == 100
    assert (weights.bos_token, weights.eos_token, weights.eos_token_ids) == ("<|bos|>", "<|end|>", [258])
    assert weights.chat_template == "{{ messages }}"
    tokenizer = Tokenizer.from_str(weights.tokenizer)
    ids = tokenizer.encode("héllo t<|end|>").ids
    assert ids == [*"héllo".encode(), 256, 258]
    assert tokenizer.decode(ids) == "héllo t"


@pytest.mark.parametrize(
    ("pre", "add_bos", "begins"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("gpt-2", None, False),
        ("gpt-2", True, True),
    ],
)
def test_the_first_token_is_what_the_file_says_or_llama_cpp_takes_for_granted(
    pre: str, add_bos: bool | None, begins: bool, tmp_path: Path
) -> None:
    weights = read_gguf(write_gguf(TinyModel(layers=1), tmp_path / "model.gguf", pre=pre, add_bos=add_bos))
    ids = Tokenizer.from_str(weights.tokenizer).encode("a").ids
    assert ids == ([257] if begins else []) + [ord("a")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "falcon"}, "falcon"),
        ({"pre": "who-knows"}, "who-knows"),
        ({"tokenizer": "llama"}, "tokenizer 'llama'"),
    ],
)
def test_what_is_not_served_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=message):
        read_gguf(write_gguf(TinyModel(), tmp_path / "model.gguf", **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(TinyModel(layers=1), tmp_path_factory.mktemp("gguf") / "model.gguf")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    """Any cut or changed byte of the header gives a BuildError or a file that still reads; nothing else."""
    damaged = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged[:cut] if data.draw(st.booleans()) else damaged)
    try:
        weights = read_gguf(path)
        for name in ("embedding", "layer.0.q", "final_norm"):
            weights.tensor(name)
    except BuildError:
        pass


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"GG", b"PK\x03\x04" + bytes(100), b"GGUF\x09\x00\x00\x00" + bytes(100)):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(BuildError):
            GgufFile(path)
