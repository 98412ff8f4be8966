"""The GGUF file of a tiny model, laid out as llama.cpp's converter does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

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
    name, _, kind = name.rpartition(".")
    if name in NAMES:
        return f"{NAMES[name]}.{kind}"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def write_gguf(
    model: TinyModel,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    pre: str = "gpt-2",
    tokenizer: str = "gpt2",
    add_bos: bool | None = None,
    tokens: Mapping[str, int] = dict(zip(TOKENS, TYPES, strict=True)),
) -> Path:
    """Write ``model`` to ``path`` and return it; ``tokens`` gives the type of each token, in the order of ids."""
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
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(257)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_eos_token_id(258)
    writer.add_chat_template("{{ messages }}")
    for name, weights in model.weights.items():
        value: Any = weights
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
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
