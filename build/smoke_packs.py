"""Tiny packs of every task that an engine serves: arbitrary weights, real graphs, for the smoke test of a tree.

They say nothing sensible; they show that the engines run where they were carried to. Every weight is a
small integer over a power of two, so that a build on another machine gives the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from appliance.packs.manifest import (
    MANIFEST_NAME,
    Decoder,
    Encoder,
    EngineKind,
    Manifest,
    PackFile,
    Speech,
    Task,
    parse_manifest,
)
from model_packs.decoder.graph import write_graph
from model_packs.decoder.profiles import exact_form
from model_packs.decoder.tokenizer import CONTROL, tokenizer_json
from model_packs.decoder.weights import DecoderConfig, DecoderWeights, rotary_frequencies, tensor_shape
from model_packs.speech.ggml import Shape, whisper_tensors, write_model

HIDDEN = 32
SPECIAL = ("<|bos|>", "<|end|>")
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
# What whisper.cpp takes for an English model; its special tokens have fixed numbers.
ENGLISH_VOCABULARY = 51_864
WORDS = 50_256


def write_smoke_packs(folder: Path) -> None:
    """Write ``smoke-chat``, ``smoke-embedding``, ``smoke-rerank`` and ``smoke-speech`` into ``folder``."""
    _write_chat(folder / "smoke-chat")
    _write_encoder(folder / "smoke-embedding", "embedding")
    _write_encoder(folder / "smoke-rerank", "rerank")
    _write_speech(folder / "smoke-speech")


class _Numbers:
    """Arbitrary weights, the same everywhere."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(7)

    def __call__(self, *shape: int) -> NDArray[np.float32]:
        return (self._random.integers(-64, 65, shape) / 256).astype(np.float32)


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte, in the order of bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _tokenizer() -> tuple[str, int]:
    tokens = [*_byte_letters(), *SPECIAL]
    types = [1] * 256 + [CONTROL] * len(SPECIAL)
    return tokenizer_json(tokens, types, [], "gpt-2", None), len(tokens)


def _write_chat(out: Path) -> None:
    out.mkdir(parents=True)
    tokenizer, vocabulary = _tokenizer()
    config = DecoderConfig(
        layers=1,
        hidden_size=HIDDEN,
        heads=2,
        kv_heads=1,
        head_dim=16,
        intermediate_size=HIDDEN,
        vocab_size=vocabulary,
        context_length=256,
        norm_epsilon=1e-5,
        inverse_frequencies=rotary_frequencies(10_000.0, 16, None),
        tied=True,
    )
    numbers, made = _Numbers(), dict[str, NDArray[np.float32]]()

    def tensor(name: str) -> NDArray[np.float32]:
        if name not in made:
            made[name] = numbers(*tensor_shape(name.rpartition(".")[2], config)) + np.float32("norm" in name)
        return made[name]

    weights = DecoderWeights(
        config=config,
        tensor=tensor,
        float_source=True,
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        eos_token_ids=[vocabulary - 1],
    )
    write_graph(weights, out / "model.onnx", exact_form(32))
    (out / "tokenizer.json").write_text(tokenizer, "utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    decoder = Decoder(
        chat_template="chat_template.jinja",
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=vocabulary,
        eos_token_ids=[vocabulary - 1],
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
    )
    _write_manifest(out, "chat", "decoder-onnx", context_length=config.context_length, decoder=decoder)


def _write_encoder(out: Path, task: Task) -> None:
    """Write an embedding table, and over it nothing (embeddings) or a mean and a product (one logit)."""
    out.mkdir(parents=True)
    tokenizer, vocabulary = _tokenizer()
    numbers = _Numbers()
    table = numpy_helper.from_array(numbers(vocabulary, HIDDEN), "table")
    column = numpy_helper.from_array(numbers(HIDDEN, 1), "column")
    look_up = helper.make_node("Gather", ["table", "input_ids"], ["hidden"])
    rerank = task == "rerank"
    nodes = [look_up]
    if rerank:
        nodes.append(helper.make_node("ReduceMean", ["hidden", "axes"], ["mean"], keepdims=0))
        nodes.append(helper.make_node("MatMul", ["mean", "column"], ["logits"]))
    name = "logits" if rerank else "hidden"
    shape: list[str | int | None] = ["batch", 1] if rerank else ["batch", "sequence", HIDDEN]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    graph = helper.make_graph(
        nodes,
        task,
        [ids],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        initializer=[table, column, axes] if rerank else [table],
    )
    model: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="build"
    )
    (out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (out / "tokenizer.json").write_text(tokenizer, "utf-8")
    encoder = Encoder(
        dimensions=None if rerank else HIDDEN, pooling="none" if rerank else "mean", output=name
    )
    _write_manifest(out, task, "encoder-onnx", context_length=128, encoder=encoder)


def _write_speech(out: Path) -> None:
    out.mkdir(parents=True)
    variables = _whisper_variables()
    shape = Shape(
        n_vocab=ENGLISH_VOCABULARY,
        n_audio_ctx=1500,
        n_audio_state=HIDDEN,
        n_audio_head=1,
        n_audio_layer=1,
        n_text_ctx=448,
        n_text_state=HIDDEN,
        n_text_head=1,
        n_text_layer=1,
        n_mels=80,
    )
    # Every byte, so that every text can be written, and then anything.
    words = [bytes([byte]) for byte in range(256)] + [f" {number}".encode() for number in range(256, WORDS)]
    write_model(out / "model.bin", shape, words, whisper_tensors(variables, shape), "q8_0")
    _write_manifest(out, "transcription", "whisper-cpp", speech=Speech(multilingual=False))


def _whisper_variables() -> dict[str, NDArray[Any]]:
    numbers = _Numbers()
    variables: dict[str, NDArray[Any]] = {
        "decoder/embeddings/weight": numbers(ENGLISH_VOCABULARY, HIDDEN),
        "encoder/position_encodings/encodings": numbers(1500, HIDDEN),
        "decoder/position_encodings/encodings": numbers(448, HIDDEN),
        "encoder/conv1/weight": numbers(HIDDEN, 80, 3),
        "encoder/conv1/bias": numbers(HIDDEN),
        "encoder/conv2/weight": numbers(HIDDEN, HIDDEN, 3),
        "encoder/conv2/bias": numbers(HIDDEN),
    }
    parts = {"encoder": ("self_attention", "ffn"), "decoder": ("self_attention", "attention", "ffn")}
    for side, blocks in parts.items():
        for norm in (f"{side}/layer_norm", *(f"{side}/layer_0/{block}/layer_norm" for block in blocks)):
            variables[f"{norm}/gamma"], variables[f"{norm}/beta"] = numbers(HIDDEN), numbers(HIDDEN)
        linears = {
            "self_attention/linear_0": (3 * HIDDEN, HIDDEN),
            "self_attention/linear_1": (HIDDEN, HIDDEN),
            "ffn/linear_0": (4 * HIDDEN, HIDDEN),
            "ffn/linear_1": (HIDDEN, 4 * HIDDEN),
        }
        if side == "decoder":
            linears |= {
                "attention/linear_0": (HIDDEN, HIDDEN),
                "attention/linear_1": (2 * HIDDEN, HIDDEN),
                "attention/linear_2": (HIDDEN, HIDDEN),
            }
        for linear, (rows, columns) in linears.items():
            variables[f"{side}/layer_0/{linear}/weight"] = numbers(rows, columns)
            variables[f"{side}/layer_0/{linear}/bias"] = numbers(rows)
        variables[f"{side}/layer_0/self_attention/linear_0/bias"][HIDDEN : 2 * HIDDEN] = 0
    variables["decoder/layer_0/attention/linear_1/bias"][:HIDDEN] = 0
    return variables


def _write_manifest(out: Path, task: Task, engine: EngineKind, **sections: Any) -> None:
    files = [
        PackFile(
            path=path.name, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(out.iterdir())
    ]
    manifest = Manifest(
        format=1,
        name=out.name,
        version="1",
        task=task,
        engine=engine,
        description="Arbitrary weights, for the smoke test.",
        license="Apache-2.0",
        owned_by="appliance",
        created=0,
        recipe_sha256="0" * 64,
        source=[],
        file=files,
        **sections,
    )
    text = tomli_w.dumps(_without_none(msgspec.to_builtins(manifest))).encode()
    parse_manifest(text)
    (out / MANIFEST_NAME).write_bytes(text)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
