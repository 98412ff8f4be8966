"""Read a Llama-style decoder out of a GGUF file: sizes, tokenizer, tensors dequantised to float32."""

from __future__ import annotations

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
_TOP_NAMES = {"embedding": "token_embd", "head": "output", "final_norm": "output_norm"}

# Tokens that end a generation in chat models, whatever the file declares as its one end token.
_END_TOKENS = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}


def read_gguf(path: Path, context_length: int | None = None) -> DecoderWeights:
    """Open ``path`` and return its decoder; ``context_length`` caps the file's own.

    Raises BuildError when the file is not a GGUF, or its architecture, rotary scaling or tokenizer
    is not one that is served.
    """
    file = GgufFile(path)
    try:
        return _decoder(file, context_length)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise BuildError(f"{path.name} lacks what a decoder needs, or has it wrong: {error!r}") from error


def _decoder(file: GgufFile, context_length: int | None) -> DecoderWeights:
    fields = file.fields
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise BuildError(f"GGUF architecture {architecture!r} is not served; known is llama")
    config = _config(file, context_length)

    def tensor(name: str) -> FloatArray:
        top, _, part = name.rpartition(".")
        stored = f"{top.replace('layer', 'blk')}.{_LAYER_NAMES[part]}" if top else _TOP_NAMES[part]
        values = file.tensor(f"{stored}.weight")
        if values.shape != tensor_shape(part, config):
            raise BuildError(
                f"the tensor {stored} has the shape {values.shape}, which the header contradicts"
            )
        if part in ("q", "k"):
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
        ),
        chat_template=fields.get("tokenizer.chat_template"),
        bos_token=bos,
        eos_token=tokens[eos_id],
        eos_token_ids=[eos_id, *(i for i in ends if i != eos_id)],
    )


def _config(file: GgufFile, context_length: int | None) -> DecoderConfig:
    fields = file.fields
    heads = int(fields["llama.attention.head_count"])
    hidden = int(fields["llama.embedding_length"])
    head_dim = int(fields.get("llama.attention.key_length", hidden // heads))
    if int(fields.get("llama.rope.dimension_count", head_dim)) != head_dim or "llama.expert_count" in fields:
        raise BuildError("partial rotary embedding and mixtures of experts are not served")
    scaling = None
    if fields.get("llama.rope.scaling.type", "none") != "none":
        scaling = {"type": fields["llama.rope.scaling.type"], "factor": fields["llama.rope.scaling.factor"]}
    frequencies = rotary_frequencies(float(fields.get("llama.rope.freq_base", 10000.0)), head_dim, scaling)
    if "rope_freqs.weight" in file.tensors:  # Llama 3.1's stretch, stored as divisors
        frequencies = frequencies / file.tensor("rope_freqs.weight").astype(np.float64)
    own_context = int(fields["llama.context_length"])
    return DecoderConfig(
        layers=int(fields["llama.block_count"]),
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
        head_dim=head_dim,
        intermediate_size=int(fields["llama.feed_forward_length"]),
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        context_length=min(own_context, context_length or own_context),
        norm_epsilon=float(fields["llama.attention.layer_norm_rms_epsilon"]),
        inverse_frequencies=frequencies,
        tied="output.weight" not in file.tensors,
    )


def _half_split(values: NDArray[np.float32], heads: int) -> FloatArray:
    """Undo GGUF's row order of q and k (pairs side by side) into halves, as rotary_interleaved=0 wants."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
