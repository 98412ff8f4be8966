"""CTranslate2 to ggml: nothing is lost but what eight bits lose, and a broken source is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_packs.cache import default_cache
from model_packs.errors import BuildError, SourceError
from model_packs.extract import extract_members
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource, load_recipes
from model_packs.speech.ctranslate2 import parse_model, read_model
from model_packs.speech.ggml import (
    TYPE_F16,
    TYPE_F32,
    TYPE_Q8_0,
    read_shape,
    tensor_names,
    vocabulary,
    whisper_tensors,
    write_model,
)
from model_packs.speech.mel import mel_filters
from model_packs.speech.quality import word_errors, words

STATE, VOCABULARY = 64, 96


def small_model(**changes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the variables of a Whisper-shaped model with random weights, one layer a side."""
    random = np.random.default_rng(3)

    def weights(*shape: int) -> NDArray[np.float16]:
        return (random.standard_normal(shape) * 0.1).astype(np.float16)

    model: dict[str, NDArray[Any]] = {
        "encoder/num_heads": np.array(2, dtype=np.int16),
        "decoder/num_heads": np.array(2, dtype=np.int16),
        "decoder/embeddings/weight": weights(VOCABULARY, STATE),
        "encoder/position_encodings/encodings": weights(20, STATE),
        "decoder/position_encodings/encodings": weights(12, STATE),
        "encoder/conv1/weight": weights(STATE, 80, 3),
        "encoder/conv1/bias": weights(STATE),
        "encoder/conv2/weight": weights(STATE, STATE, 3),
        "encoder/conv2/bias": weights(STATE),
    }
    for name in (
        "encoder/layer_norm",
        "decoder/layer_norm",
        "encoder/layer_0/self_attention/layer_norm",
        "encoder/layer_0/ffn/layer_norm",
        "decoder/layer_0/self_attention/layer_norm",
        "decoder/layer_0/attention/layer_norm",
        "decoder/layer_0/ffn/layer_norm",
    ):
        model[f"{name}/gamma"], model[f"{name}/beta"] = weights(STATE), weights(STATE)
    linears = [
        ("encoder/layer_0/self_attention/linear_0", 3 * STATE, STATE),
        ("encoder/layer_0/self_attention/linear_1", STATE, STATE),
        ("encoder/layer_0/ffn/linear_0", 4 * STATE, STATE),
        ("encoder/layer_0/ffn/linear_1", STATE, 4 * STATE),
        ("decoder/layer_0/self_attention/linear_0", 3 * STATE, STATE),
        ("decoder/layer_0/self_attention/linear_1", STATE, STATE),
        ("decoder/layer_0/attention/linear_0", STATE, STATE),
        ("decoder/layer_0/attention/linear_1", 2 * STATE, STATE),
        ("decoder/layer_0/attention/linear_2", STATE, STATE),
        ("decoder/layer_0/ffn/linear_0", 4 * STATE, STATE),
        ("decoder/layer_0/ffn/linear_1", STATE, 4 * STATE),
    ]
    for name, rows, columns in linears:
        model[f"{name}/weight"], model[f"{name}/bias"] = weights(rows, columns), weights(rows)
    for side in ("encoder", "decoder"):
        model[f"{side}/layer_0/self_attention/linear_0/bias"][STATE : 2 * STATE] = 0
    model["decoder/layer_0/attention/linear_1/bias"][:STATE] = 0
    return model | changes


DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def written(variables: dict[str, NDArray[Any]], *, version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """Return the model file as CTranslate2 writes it."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(variables))
    for name, values in variables.items():
        data += string(name) + struct.pack("<B", values.ndim)
        data += struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", DTYPES[values.dtype.name], values.nbytes) + values.tobytes()
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    return data + struct.pack("<I", 1) + alias


MODEL = small_model()
FILE = written(MODEL)


def test_a_model_file_is_read_whole_also_in_parts(tmp_path: Path) -> None:
    middle = len(FILE) // 2
    parts = [tmp_path / "one", tmp_path / "two"]
    parts[0].write_bytes(FILE[:middle])
    parts[1].write_bytes(FILE[middle:])
    variables = read_model(parts)

    assert set(variables) == {*MODEL, "decoder/projection/weight"}
    for name, values in MODEL.items():
        assert variables[name].dtype == values.dtype
        np.testing.assert_array_equal(variables[name], values)


@settings(max_examples=200)
@given(st.integers(0, len(FILE) - 1))
def test_a_truncated_file_is_refused(size: int) -> None:
    with pytest.raises(SourceError):
        parse_model(FILE[:size])


@pytest.mark.parametrize(
    "data", [written(MODEL, version=5), written(MODEL, spec="TransformerSpec"), FILE + b"\0", b""]
)
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        parse_model(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decoder/embeddings/weight": np.zeros((VOCABULARY, STATE), np.int8)}, "only float16 and float32"),
        (
            {"encoder/layer_0/self_attention/linear_0/bias": np.ones(3 * STATE, np.float16)},
            "bias on its keys",
        ),
        ({"decoder/layer_0/attention/linear_1/bias": np.ones(2 * STATE, np.float16)}, "bias on its keys"),
    ],
)
def test_what_ggml_has_no_place_for_is_refused(change: dict[str, NDArray[Any]], reason: str) -> None:
    variables = small_model(**change)
    with pytest.raises(SourceError, match=reason):
        whisper_tensors(variables, read_shape(variables))


def test_an_absent_variable_is_named() -> None:
    variables = small_model()
    del variables["decoder/layer_0/ffn/linear_1/weight"]
    with pytest.raises(SourceError, match="decoder/layer_0/ffn/linear_1/weight"):
        whisper_tensors(variables, read_shape(variables))


def test_the_tensors_are_those_of_the_model() -> None:
    shape = read_shape(MODEL)
    tensors = whisper_tensors(MODEL, shape)

    assert (shape.n_vocab, shape.n_text_ctx, shape.n_audio_ctx, shape.n_mels) == (VOCABULARY, 12, 20, 80)
    assert (shape.n_audio_layer, shape.n_text_layer, shape.n_text_head) == (1, 1, 2)
    # As whisper.cpp counts them: 5 + 15 layers-wise of the encoder, 4 + 24 of the decoder, conv and ends.
    assert len(tensors) == 5 + 2 + 15 + 2 + 2 + 24
    fused = MODEL["decoder/layer_0/attention/linear_1/weight"].astype(np.float32)
    np.testing.assert_array_equal(tensors["decoder.blocks.0.cross_attn.key.weight"], fused[:STATE])
    np.testing.assert_array_equal(tensors["decoder.blocks.0.cross_attn.value.weight"], fused[STATE:])
    assert "decoder.blocks.0.attn.key.bias" not in tensors
    assert tensors["encoder.conv1.bias"].shape == (STATE, 1)


@pytest.mark.parametrize("precision", ["f16", "q8_0"])
def test_the_file_holds_every_tensor(tmp_path: Path, precision: Any) -> None:
    shape = read_shape(MODEL)
    tensors = whisper_tensors(MODEL, shape)
    path = tmp_path / "model.bin"
    write_model(path, shape, [b"a", b"\xff\x00"], tensors, precision)

    found = {name: (kind, dimensions) for name, kind, dimensions in tensor_names(path)}
    assert {name: dimensions for name, (_, dimensions) in found.items()} == {
        name: values.shape for name, values in tensors.items()
    }
    assert found["encoder.conv1.weight"][0] == TYPE_F16
    assert found["encoder.positional_embedding"][0] == TYPE_F32
    assert found["decoder.ln.bias"][0] == TYPE_F32
    matrix = found["decoder.token_embedding.weight"][0]
    assert matrix == (TYPE_Q8_0 if precision == "q8_0" else TYPE_F16)


def test_eight_bits_lose_little(tmp_path: Path) -> None:
    shape = read_shape(MODEL)
    tensors = whisper_tensors(MODEL, shape)
    path = tmp_path / "model.bin"
    write_model(path, shape, [], tensors, "q8_0")
    data = path.read_bytes()
    name = b"decoder.token_embedding.weight"
    start = data.index(name) + len(name)
    source = tensors[name.decode()]
    blocks = np.frombuffer(data[start : start + source.size // 32 * 34], dtype=np.uint8).reshape(-1, 34)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    back = (blocks[:, 2:].copy().view(np.int8) * scales).reshape(source.shape)

    # Half a step of the block's scale, and the scale's own rounding.
    steps = np.repeat(scales.reshape(source.shape[0], -1), 32, axis=1)
    assert (np.abs(back - source) <= steps * 0.57).all()


def test_mel_filters_are_bit_for_bit_those_of_whisper(tmp_path: Path) -> None:
    """The loader tests of whisper.cpp, in the same source archive as a sample, carry the real filters."""
    sources = [s for s in load_recipes()["whisper-tiny.en"].source if isinstance(s, PackageSource)]
    source = next(s for s in sources if s.package == "pywhispercpp")
    archive = fetch_package(source, default_cache() / "sources")
    member = f"pywhispercpp-{source.version}/whisper.cpp/models/for-tests-ggml-tiny.en.bin"
    data = extract_members(archive, {"tiny.bin": member}, tmp_path)["tiny.bin"].read_bytes()
    bands, bins = struct.unpack_from("<2i", data, 12 * 4)
    filters = np.frombuffer(data, dtype="<f4", count=bands * bins, offset=14 * 4).reshape(bands, bins)

    np.testing.assert_array_equal(mel_filters(bands), filters)


def tokenizer(vocab: dict[str, int], special: list[str]) -> bytes:
    document = {"model": {"vocab": vocab}, "added_tokens": [{"content": token} for token in special]}
    return json.dumps(document).encode()


def test_tokens_are_bytes() -> None:
    data = tokenizer({"a": 0, "Ġb": 1, "Ċ": 2, "Ã": 3, "<|endoftext|>": 4}, ["<|endoftext|>"])

    assert vocabulary(data) == [b"a", b" b", b"\n", b"\xc3"]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"model": {}}', tokenizer({"a": 0, "b": 2}, []), tokenizer({"€": 0}, [])],
)
def test_a_tokenizer_of_another_kind_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError):
        vocabulary(data)


def test_words_without_case_and_marks() -> None:
    assert words("And so, my fellow-Americans: Mr. X's 2nd") == [
        "and",
        "so",
        "my",
        "fellow",
        "americans",
        "mister",
        "x's",
        "2nd",
    ]


LISTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=7)


@given(LISTS, LISTS, LISTS)
def test_word_errors_are_a_distance(one: list[str], two: list[str], three: list[str]) -> None:
    assert word_errors(one, one) == 0
    assert word_errors(one, []) == len(one)
    assert word_errors(one, two) == word_errors(two, one)
    assert (word_errors(one, two) == 0) == (one == two)
    assert word_errors(one, three) <= word_errors(one, two) + word_errors(two, three)
