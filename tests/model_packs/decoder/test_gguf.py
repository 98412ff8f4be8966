"""GGUF files: read like the safetensors of the same model; broken ones refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model_packs.decoder.gguf_file import GgufFile
from model_packs.decoder.gguf_source import read_gguf
from model_packs.decoder.graph import write_graph
from model_packs.decoder.profiles import FLOAT, throughput_form
from model_packs.decoder.tokenizer import CONTROL, UNUSED, USER_DEFINED
from model_packs.errors import BuildError
from tests.model_packs.decoder.running import Running
from tests.model_packs.decoder.tiny import TOKENS, TinyModel
from tests.model_packs.decoder.tiny_gguf import write_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_graph_from_gguf_equals_the_reference(tied: bool, tmp_path: Path) -> None:
    model = TinyModel(tied=tied)
    weights = read_gguf(write_gguf(model, tmp_path / "model.gguf"))
    write_graph(weights, tmp_path / "model.onnx", FLOAT)
    tokens = list(range(60, 100))
    logits = Running(tmp_path / "model.onnx").prefill(tokens, 16)
    np.testing.assert_allclose(logits, model.logits(tokens), atol=2e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_has_biases_and_its_rows_lie_as_they_are_multiplied(tied: bool, tmp_path: Path) -> None:
    model = TinyModel(tied=tied, biased=True)
    weights = read_gguf(write_gguf(model, tmp_path / "model.gguf", architecture="qwen2", pre="qwen2"))
    for name, stored in (("q", "q_proj.weight"), ("k_bias", "k_proj.bias"), ("v_bias", "v_proj.bias")):
        np.testing.assert_array_equal(
            weights.tensor(f"layer.1.{name}"), model.weights[f"model.layers.1.self_attn.{stored}"]
        )
    write_graph(weights, tmp_path / "model.onnx", FLOAT)
    tokens = list(range(60, 100))
    logits = Running(tmp_path / "model.onnx").prefill(tokens, 16)
    np.testing.assert_allclose(logits, model.logits(tokens), atol=2e-4)


def test_biases_stay_what_they_are_in_a_rotated_graph(tmp_path: Path) -> None:
    model = TinyModel(biased=True)
    weights = read_gguf(write_gguf(model, tmp_path / "model.gguf", architecture="qwen2", pre="qwen2"))
    write_graph(weights, tmp_path / "model.onnx", throughput_form(32, model.hidden))
    tokens = list(range(60, 100))
    logits = Running(tmp_path / "model.onnx").prefill(tokens, 16)
    assert np.corrcoef(logits.ravel(), model.logits(tokens).ravel())[0, 1] > 0.99


def test_biases_that_the_architecture_does_not_have_are_refused(tmp_path: Path) -> None:
    path = write_gguf(TinyModel(biased=True), tmp_path / "model.gguf")
    with pytest.raises(BuildError, match=r"blk\.0\.attn_k\.bias"):
        read_gguf(path)


def test_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    weights = read_gguf(write_gguf(TinyModel(), tmp_path / "model.gguf", architecture="qwen2", pre="qwen2"))
    with pytest.raises(BuildError, match=r"lacks the tensor blk\.0\.attn_q\.bias"):
        write_graph(weights, tmp_path / "model.onnx", FLOAT)


QWEN2_TOKENS = (
    dict.fromkeys(TOKENS[:257], 1)
    | {"12": 1}
    | dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CONTROL)
    | {"<tool_call>": USER_DEFINED, "</tool_call>": CONTROL, "[PAD264]": UNUSED}
)


def qwen2_tokenizer(folder: Path, shown: tuple[str, ...] = ()) -> Tokenizer:
    path = folder / "model.gguf"
    write_gguf(TinyModel(biased=True), path, architecture="qwen2", pre="qwen2", tokens=QWEN2_TOKENS)
    return Tokenizer.from_str(read_gguf(path, shown=shown).tokenizer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("In 2024", ["In", "Ġ", "2", "0", "2", "4"]),
        ("don't WE'LL", ["don", "'t", "ĠWE", "'LL"]),
        ("a(b)  c", ["a", "(b", ")", "Ġ", "Ġc"]),
        ("x;\n\n  y \n", ["x", ";ĊĊ", "Ġ", "Ġy", "ĠĊ"]),
    ],
)
def test_qwen2_splits_words_and_digits_as_its_makers_do(text: str, words: list[str], tmp_path: Path) -> None:
    pre_tokenizer = qwen2_tokenizer(tmp_path).pre_tokenizer
    assert pre_tokenizer is not None
    assert [word for word, _ in pre_tokenizer.pre_tokenize_str(text)] == words


def test_qwen2_composes_characters_and_joins_no_digits(tmp_path: Path) -> None:
    tokenizer = qwen2_tokenizer(tmp_path)
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids == [*"é".encode()]
    assert tokenizer.encode("12").ids == [ord("1"), ord("2")]


def test_control_tokens_have_no_text_but_what_is_shown(tmp_path: Path) -> None:
    text = "<|im_start|><tool_call>{}</tool_call><|im_end|>"
    tokenizer = qwen2_tokenizer(tmp_path)
    ids = tokenizer.encode(text).ids
    assert ids == [259, 261, ord("{"), ord("}"), 262, 260]
    assert tokenizer.decode(ids) == "<tool_call>{}"
    shown = qwen2_tokenizer(tmp_path, ("<tool_call>", "</tool_call>"))
    assert shown.encode(text).ids == ids
    assert shown.decode(ids) == "<tool_call>{}</tool_call>"


def test_text_of_a_chat_model_ends_with_a_turn_or_a_document(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(TinyModel(biased=True), path, architecture="qwen2", pre="qwen2", tokens=QWEN2_TOKENS)
    assert read_gguf(path).eos_token_ids == [258, 260]


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


@settings(max_examples=80)
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
