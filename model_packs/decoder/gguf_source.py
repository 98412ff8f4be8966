"""Read a Llama-style decoder out of a GGUF file: sizes, tokenizer, tensors dequantised to float32."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.gguf_file import GgufFile
from model_packs.decoder.tokenizer import CONTROL, tokenizer_json
from model_packs.decoder.weights import (
    DecoderConfig,
    DecoderWeights,
    FloatArray,
    rotary_frequencies,
    tensor_shape,
)
from model_packs.errors import BuildError


@dataclass(frozen=True)
class _Architecture:
    """What a GGUF architecture has beside Llama's matrices, and how it stores them.

    ``attention_bias``: q, k and v have biases; ``paired``: the rows of q and k are in pairs, not halves.
    """

    attention_bias: bool
    paired: bool


_ARCHITECTURES = {
    "llama": _Architecture(attention_bias=False, paired=True),
    "qwen2": _Architecture(attention_bias=True, paired=False),
}

_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_BIASES = {f"{part}_bias": f"attn_{part}" for part in "qkv"}
_READ_BIAS = re.compile(r"blk\.[0-9]+\.attn_[qkv]\.bias")
_TOP_NAMES = {"embedding": "token_embd", "head": "output", "final_norm": "output_norm"}

# Tokens that end a generation in chat models, whatever the file declares as its one end token.
_END_TOKENS = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}


def read_gguf(path: Path, context_length: int | None = None, shown: Collection[str] = ()) -> DecoderWeights:
    """Open ``path`` and return its decoder; ``context_length`` caps the file's own.

    ``shown`` are tokens that belong to an answer's text even if the file has them as control tokens.
    Raises BuildError when the file is not a GGUF, or its architecture, rotary scaling or tokenizer
    is not one that is served.
    """
    file = GgufFile(path)
    try:
        return _decoder(file, context_length, shown)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise BuildError(f"{path.name} lacks what a decoder needs, or has it wrong: {error!r}") from error


def _decoder(file: GgufFile, context_length: int | None, shown: Collection[str]) -> DecoderWeights:
    fields = file.fields
    architecture = fields["general.architecture"]
    if architecture not in _ARCHITECTURES:
        raise BuildError(
            f"GGUF architecture {architecture!r} is not served; known are {', '.join(_ARCHITECTURES)}"
        )
    form = _ARCHITECTURES[architecture]
    config = _config(file, architecture, context_length)
    _refuse_unread_biases(file, form)

    def tensor(name: str) -> FloatArray:
        stored = _stored_name(name)
        values = file.tensor(stored)
        part = name.rpartition(".")[2]
        if values.shape != tensor_shape(part, config):
            raise BuildError(
                f"the tensor {stored} has the shape {values.shape}, which the header contradicts"
            )
        if form.paired and part in ("q", "k"):
            return _half_split(values, config.heads if part == "q" else config.kv_heads)
        return values

    if fields["tokenizer.ggml.model"] != "gpt2":
        raise BuildError(
            f"GGUF tokenizer {fields['tokenizer.ggml.model']!r} is not served; known is gpt2 (BPE)"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields["tokenizer.ggml.token_type"]
    bos = tokens[fields["tokenizer.ggml.bos_token_id"]] if "tokenizer.ggml.bos_token_id" in fields else ""
    pre: str = fields["tokenizer.ggml.pre"]
    # llama.cpp's default: only Llama 3's vocabulary begins every sequence when the file does not say.
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))
    eos_id = fields["tokenizer.ggml.eos_token_id"]
    ends = [
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL and token in _END_TOKENS
    ]
    return DecoderWeights(
        config=config,
        tensor=tensor,
        float_source=file.is_float,
        tokenizer=tokenizer_json(
            tokens,
            types,
            fields["tokenizer.ggml.merges"],
            pre,
            bos if add_bos else None,
            shown,
        ),
        chat_template=fields.get("tokenizer.chat_template"),
        bos_token=bos,
        eos_token=tokens[eos_id],
        eos_token_ids=[eos_id, *(i for i in ends if i != eos_id)],
    )


def _stored_name(name: str) -> str:
    """Return the file's name of a tensor that ``DecoderWeights`` calls ``name``."""
    layer, _, part = name.rpartition(".")
    if not layer:
        return f"{_TOP_NAMES[part]}.weight"
    block = layer.replace("layer", "blk")
    return f"{block}.{_BIASES[part]}.bias" if part in _BIASES else f"{block}.{_LAYER_NAMES[part]}.weight"


def _refuse_unread_biases(file: GgufFile, form: _Architecture) -> None:
    """Raise BuildError when the file has a bias that the graph would leave out."""
    biases = sorted(name for name in file.tensors if name.endswith(".bias"))
    unread = [name for name in biases if not (form.attention_bias and _READ_BIAS.fullmatch(name))]
    if unread:
        raise BuildError(f"the GGUF file has biases that are not served, such as {unread[0]}")


def _config(file: GgufFile, architecture: str, context_length: int | None) -> DecoderConfig:
    # Their keys begin with the architecture's name.
    prefix = f"{architecture}."
    fields = {key.removeprefix(prefix): value for key, value in file.fields.items() if key.startswith(prefix)}
    heads = int(fields["attention.head_count"])
    hidden = int(fields["embedding_length"])
    head_dim = int(fields.get("attention.key_length", hidden // heads))
    if int(fields.get("rope.dimension_count", head_dim)) != head_dim or "expert_count" in fields:
        raise BuildError("partial rotary embedding and mixtures of experts are not served")
    scaling = None
    if fields.get("rope.scaling.type", "none") != "none":
        scaling = {"type": fields["rope.scaling.type"], "factor": fields["rope.scaling.factor"]}
    frequencies = rotary_frequencies(float(fields.get("rope.freq_base", 10000.0)), head_dim, scaling)
    if "rope_freqs.weight" in file.tensors:  # Llama 3.1's stretch, stored as divisors
        frequencies = frequencies / file.tensor("rope_freqs.weight").astype(np.float64)
    own_context = int(fields["context_length"])
    return DecoderConfig(
        layers=int(fields["block_count"]),
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(fields.get("attention.head_count_kv", heads)),
        head_dim=head_dim,
        intermediate_size=int(fields["feed_forward_length"]),
        vocab_size=len(file.fields["tokenizer.ggml.tokens"]),
        context_length=min(own_context, context_length or own_context),
        norm_epsilon=float(fields["attention.layer_norm_rms_epsilon"]),
        inverse_frequencies=frequencies,
        tied="output.weight" not in file.tensors,
        attention_bias=_ARCHITECTURES[architecture].attention_bias,
    )


def _half_split(values: NDArray[np.float32], heads: int) -> FloatArray:
    """Undo GGUF's row order of q and k (pairs side by side) into halves, as rotary_interleaved=0 wants."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
