"""Write whisper.cpp's ggml file from CTranslate2 variables, and quantise its matrices to q8_0.

The file, little-endian: i32 magic, eleven i32 of hyperparameters, the mel filters (i32 bands, i32
bins, f32 data), the vocabulary (i32 count, then i32 length and bytes per token; the special tokens
are added by the loader), and tensors to the end of the file: i32 rank, i32 name length, i32 type,
the dimensions innermost first, name, data.
"""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from model_packs.errors import BuildError, SourceError
from model_packs.speech.ctranslate2 import Variables, float32, scalar
from model_packs.speech.mel import FFT_SIZE, mel_filters

MAGIC = 0x67676D6C
# ggml's type numbers, and the file types of the header: a quantised file adds its version times 1000.
TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8
FILE_F16, FILE_Q8_0 = 1, 2007
Q8_0_BLOCK, Q8_0_BYTES = 32, 34

Precision = Literal["f16", "q8_0"]
Tensors = dict[str, NDArray[np.float32]]

# Rank-1 tensors and these four stay f32; whisper.cpp expects them so.
_ALWAYS_F32 = {
    "encoder.conv1.bias",
    "encoder.conv2.bias",
    "encoder.positional_embedding",
    "decoder.positional_embedding",
}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A Whisper model's hyperparameters, in the order and under the names of the file's header."""

    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int

    @property
    def multilingual(self) -> bool:
        """Whether the vocabulary holds the language tokens (whisper.cpp judges by its size, too)."""
        return self.n_vocab >= 51_865


def read_shape(variables: Variables) -> Shape:
    """Return the hyperparameters that the variables' shapes and settings say. Raises SourceError."""
    n_vocab, n_text_state = float32(variables, "decoder/embeddings/weight").shape
    n_text_ctx = float32(variables, "decoder/position_encodings/encodings").shape[0]
    n_audio_ctx, n_audio_state = float32(variables, "encoder/position_encodings/encodings").shape
    return Shape(
        n_vocab=n_vocab,
        n_audio_ctx=n_audio_ctx,
        n_audio_state=n_audio_state,
        n_audio_head=scalar(variables, "encoder/num_heads"),
        n_audio_layer=_count_layers(variables, "encoder"),
        n_text_ctx=n_text_ctx,
        n_text_state=n_text_state,
        n_text_head=scalar(variables, "decoder/num_heads"),
        n_text_layer=_count_layers(variables, "decoder"),
        n_mels=float32(variables, "encoder/conv1/weight").shape[1],
    )


def _count_layers(variables: Variables, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in variables:
        count += 1
    return count


def whisper_tensors(variables: Variables, shape: Shape) -> Tensors:
    """Return the model's tensors, float32, under whisper.cpp's names.

    Raises SourceError when a variable is absent, or when a key projection has a bias: Whisper has
    none, and ggml has no place for one.
    """
    tensors: Tensors = {}
    for conv in ("conv1", "conv2"):
        tensors[f"encoder.{conv}.weight"] = float32(variables, f"encoder/{conv}/weight")
        tensors[f"encoder.{conv}.bias"] = float32(variables, f"encoder/{conv}/bias").reshape(-1, 1)
    for side in ("encoder", "decoder"):
        position = float32(variables, f"{side}/position_encodings/encodings")
        tensors[f"{side}.positional_embedding"] = position
    tensors["decoder.token_embedding.weight"] = float32(variables, "decoder/embeddings/weight")
    _norm(tensors, variables, "encoder/layer_norm", "encoder.ln_post")
    _norm(tensors, variables, "decoder/layer_norm", "decoder.ln")
    for side, layers in (("encoder", shape.n_audio_layer), ("decoder", shape.n_text_layer)):
        for layer in range(layers):
            source, block = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            _self_attention(tensors, variables, f"{source}/self_attention", f"{block}.attn")
            if side == "decoder":
                _cross_attention(tensors, variables, f"{source}/attention", f"{block}.cross_attn")
            _norm(tensors, variables, f"{source}/ffn/layer_norm", f"{block}.mlp_ln")
            _linear(tensors, variables, f"{source}/ffn/linear_0", f"{block}.mlp.0")
            _linear(tensors, variables, f"{source}/ffn/linear_1", f"{block}.mlp.2")
    return tensors


def _norm(tensors: Tensors, variables: Variables, source: str, name: str) -> None:
    tensors[f"{name}.weight"] = float32(variables, f"{source}/gamma")
    tensors[f"{name}.bias"] = float32(variables, f"{source}/beta")


def _linear(tensors: Tensors, variables: Variables, source: str, name: str) -> None:
    tensors[f"{name}.weight"] = float32(variables, f"{source}/weight")
    tensors[f"{name}.bias"] = float32(variables, f"{source}/bias")


def _self_attention(tensors: Tensors, variables: Variables, source: str, name: str) -> None:
    _norm(tensors, variables, f"{source}/layer_norm", f"{name}_ln")
    _fused(tensors, variables, f"{source}/linear_0", name, ("query", "key", "value"))
    _linear(tensors, variables, f"{source}/linear_1", f"{name}.out")


def _cross_attention(tensors: Tensors, variables: Variables, source: str, name: str) -> None:
    _norm(tensors, variables, f"{source}/layer_norm", f"{name}_ln")
    _linear(tensors, variables, f"{source}/linear_0", f"{name}.query")
    _fused(tensors, variables, f"{source}/linear_1", name, ("key", "value"))
    _linear(tensors, variables, f"{source}/linear_2", f"{name}.out")


def _fused(
    tensors: Tensors, variables: Variables, source: str, name: str, projections: tuple[str, ...]
) -> None:
    """Split a fused projection along its rows; the key's part has no bias."""
    weights = np.split(float32(variables, f"{source}/weight"), len(projections))
    biases = np.split(float32(variables, f"{source}/bias"), len(projections))
    for projection, weight, bias in zip(projections, weights, biases, strict=True):
        tensors[f"{name}.{projection}.weight"] = weight
        if projection != "key":
            tensors[f"{name}.{projection}.bias"] = bias
        elif bias.any():
            raise SourceError(f"{source} has a bias on its keys; a Whisper model has none")


def vocabulary(tokenizer_json: bytes) -> list[bytes]:
    """Return the byte-level BPE tokens of a ``tokenizer.json`` by id, without the special tokens.

    Raises SourceError when the ids are not 0, 1, 2, … or a token is not in the byte alphabet.
    """
    alphabet = _byte_alphabet()
    try:
        document: dict[str, Any] = json.loads(tokenizer_json)
        ids: dict[str, int] = document["model"]["vocab"]
        special = {token["content"] for token in document["added_tokens"]}
        ordered = sorted((number, token) for token, number in ids.items() if token not in special)
        tokens = [bytes(alphabet[character] for character in token) for _, token in ordered]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"the tokenizer is not a byte-level BPE one: {error!r}") from error
    if [number for number, _ in ordered] != list(range(len(ordered))):
        raise SourceError("the tokenizer's ids have gaps")
    return tokens


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's map of printable characters to bytes: printable bytes are themselves, others follow 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + index): byte for index, byte in enumerate(hidden)}
    return alphabet


def write_model(
    path: Path, shape: Shape, tokens: list[bytes], tensors: Tensors, precision: Precision = "q8_0"
) -> None:
    """Write the ggml file at ``path``. Raises BuildError when the quantiser is absent."""
    quantize = _quantizer() if precision == "q8_0" else None
    with path.open("wb") as file:
        file_type = FILE_Q8_0 if precision == "q8_0" else FILE_F16
        file.write(struct.pack("<12i", MAGIC, *msgspec.structs.astuple(shape), file_type))
        filters = mel_filters(shape.n_mels)
        file.write(struct.pack("<2i", shape.n_mels, FFT_SIZE // 2 + 1))
        file.write(filters.tobytes())
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, tensor in tensors.items():
            _write_tensor(file, name, tensor, quantize)


def _write_tensor(file: BinaryIO, name: str, tensor: NDArray[np.float32], quantize: Any) -> None:
    if tensor.ndim == 1 or name in _ALWAYS_F32:
        kind, data = TYPE_F32, tensor.tobytes()
    elif quantize is not None and tensor.ndim == 2 and tensor.shape[1] % Q8_0_BLOCK == 0:
        kind, data = TYPE_Q8_0, _quantize(quantize, tensor)
    else:
        kind, data = TYPE_F16, tensor.astype(np.float16).tobytes()
    encoded = name.encode("ascii")
    file.write(struct.pack("<3i", tensor.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{tensor.ndim}i", *reversed(tensor.shape)))
    file.write(encoded + data)


def _quantizer() -> Any:
    """Return ggml's own block quantiser out of the library that the engine runs on.

    Opening the extension finds the symbols of the libraries it is linked to, wherever they lie.
    """
    try:
        import _pywhispercpp

        quantize = ctypes.CDLL(_pywhispercpp.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError) as error:
        raise BuildError(f"pywhispercpp's library does not offer its quantiser: {error}") from error
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return quantize


def _quantize(quantize: Any, tensor: NDArray[np.float32]) -> bytes:
    rows, columns = tensor.shape
    values = np.ascontiguousarray(tensor)
    blocks = np.empty(rows * columns // Q8_0_BLOCK * Q8_0_BYTES, dtype=np.uint8)
    written = quantize(TYPE_Q8_0, values.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
    if written != blocks.nbytes:
        raise BuildError(f"the quantiser wrote {written} bytes where {blocks.nbytes} were due")
    return blocks.tobytes()


def tensor_names(path: Path) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield name, ggml type and shape (outermost first) of each tensor of a file that ``write_model`` wrote."""
    sizes = {TYPE_F32: 4.0, TYPE_F16: 2.0, TYPE_Q8_0: Q8_0_BYTES / Q8_0_BLOCK}
    with path.open("rb") as file:
        file.seek(12 * 4)
        bands, bins = struct.unpack("<2i", file.read(8))
        file.seek(bands * bins * 4, 1)
        for _ in range(struct.unpack("<i", file.read(4))[0]):
            file.seek(struct.unpack("<i", file.read(4))[0], 1)
        while header := file.read(12):
            rank, length, kind = struct.unpack("<3i", header)
            dimensions = struct.unpack(f"<{rank}i", file.read(4 * rank))
            name = file.read(length).decode("ascii")
            file.seek(int(np.prod(dimensions) * sizes[kind]), 1)
            yield name, kind, tuple(reversed(dimensions))
