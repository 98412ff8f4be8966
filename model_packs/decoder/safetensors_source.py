"""Read a Llama-style decoder out of a Hugging Face folder: ``config.json`` and safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from model_packs.decoder.safetensors_file import SafetensorsFiles
from model_packs.decoder.weights import (
    DecoderConfig,
    DecoderWeights,
    FloatArray,
    rotary_frequencies,
    tensor_shape,
)
from model_packs.errors import BuildError

# Architectures that are Llama's with other sizes; those marked True have biases on q, k and v.
_ARCHITECTURES = {"LlamaForCausalLM": False, "MistralForCausalLM": False, "Qwen2ForCausalLM": True}

_LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_TOP_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
}

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class HfConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of ``config.json`` that shape the graph; what it does not know of is not read.

    Version 5 of transformers moved ``rope_theta`` and ``rope_scaling`` into ``rope_parameters``; both
    places are read, for a missed one gives a silently wrong model.
    """

    architectures: list[str]
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: float
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    partial_rotary_factor: float | None = None
    quantization_config: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None


def read_safetensors(members: dict[str, Path], context_length: int | None = None) -> DecoderWeights:
    """Return the decoder of a Hugging Face folder's files, given by their names there.

    Needs ``config.json``, ``tokenizer.json`` and at least one ``*.safetensors`` file; takes
    ``tokenizer_config.json``, ``generation_config.json`` and ``chat_template.jinja`` when they are given.
    ``context_length`` caps the model's own. Raises BuildError.
    """
    try:
        hf = msgspec.json.decode(members["config.json"].read_bytes(), type=HfConfig)
        tokenizer = members["tokenizer.json"].read_text(encoding="utf-8")
    except KeyError as error:
        raise BuildError(f"the recipe gives no member {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BuildError(f"the model's configuration cannot be read: {error}") from error
    files = SafetensorsFiles(path for name, path in sorted(members.items()) if name.endswith(".safetensors"))
    config = _config(hf, files, context_length)

    def tensor(name: str) -> FloatArray:
        layer, _, part = name.rpartition(".")
        stored = (
            f"model.{layer.replace('layer', 'layers')}.{_LAYER_NAMES[part]}" if layer else _TOP_NAMES[part]
        )
        return files.tensor(stored, tensor_shape(part, config))

    words = _json(members, "tokenizer_config.json")
    template = words.get("chat_template")
    if "chat_template.jinja" in members:
        template = members["chat_template.jinja"].read_text(encoding="utf-8")
    eos = _json(members, "generation_config.json").get("eos_token_id", hf.eos_token_id)
    return DecoderWeights(
        config=config,
        tensor=tensor,
        float_source=True,  # other types are refused
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        bos_token=_word(words, "bos_token"),
        eos_token=_word(words, "eos_token"),
        eos_token_ids=_end_tokens(eos, tokenizer, _word(words, "eos_token"), config.vocab_size),
    )


def _config(hf: HfConfig, files: SafetensorsFiles, context_length: int | None) -> DecoderConfig:
    architecture = hf.architectures[0] if hf.architectures else ""
    if architecture not in _ARCHITECTURES:
        raise BuildError(
            f"architecture {architecture!r} is not served; known are {', '.join(_ARCHITECTURES)}"
        )
    windowed = hf.sliding_window is not None and hf.use_sliding_window is not False
    refused = {
        f"activation {hf.hidden_act!r}": hf.hidden_act != "silu",
        "biases in the feed-forward part": hf.mlp_bias,
        "a bias on the attention's output": hf.attention_bias,
        "sliding-window attention": windowed and (hf.sliding_window or 0) < hf.max_position_embeddings,
        "partial rotary embedding": hf.partial_rotary_factor not in (None, 1.0),
        "weights that are quantised already": hf.quantization_config is not None,
    }
    for feature, present in refused.items():
        if present:
            raise BuildError(f"{feature}: not served")
    head_dim = hf.head_dim or hf.hidden_size // hf.num_attention_heads
    rope = hf.rope_parameters or {}
    theta = rope.get("rope_theta", hf.rope_theta)
    if not isinstance(theta, (int, float)):
        # Llama's old default; a folder without the field anywhere is one of the first models.
        theta = 10000.0
    return DecoderConfig(
        layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
        head_dim=head_dim,
        intermediate_size=hf.intermediate_size,
        vocab_size=hf.vocab_size,
        context_length=min(hf.max_position_embeddings, context_length or hf.max_position_embeddings),
        norm_epsilon=hf.rms_norm_eps,
        inverse_frequencies=rotary_frequencies(float(theta), head_dim, hf.rope_parameters or hf.rope_scaling),
        tied=hf.tie_word_embeddings or _TOP_NAMES["head"] not in files,
        attention_bias=_ARCHITECTURES[architecture],
    )


def _json(members: dict[str, Path], name: str) -> dict[str, Any]:
    """Return an optional JSON member, or nothing."""
    if name not in members:
        return {}
    try:
        value = json.loads(members[name].read_bytes())
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _word(words: dict[str, Any], name: str) -> str:
    """Return a special token's text, which is a string or an object with ``content``."""
    value = words.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _end_tokens(declared: Any, tokenizer: str, eos_token: str, vocab_size: int) -> list[int]:
    ids = [declared] if isinstance(declared, int) else declared
    if ids is None and eos_token:
        added = json.loads(tokenizer).get("added_tokens", [])
        ids = [entry["id"] for entry in added if entry.get("content") == eos_token]
    if (
        not isinstance(ids, list)
        or not ids
        or not all(isinstance(i, int) and 0 <= i < vocab_size for i in ids)
    ):
        raise BuildError("the model does not say which token ends a text")
    return ids
