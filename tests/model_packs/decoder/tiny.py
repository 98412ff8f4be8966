"""A tiny Llama-style model with random weights, its files, and a forward pass of its own in float64."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.tokenizer import CONTROL, tokenizer_json

Array = NDArray[np.float64]


def byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte, in the order of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


TOKENS = [*byte_letters(), "Ġt", "<|bos|>", "<|end|>"]
TYPES = [1] * 257 + [CONTROL] * 2
TOKENIZER = tokenizer_json(TOKENS, TYPES, ["Ġ t"], "gpt-2", None)


@dataclass
class TinyModel:
    """Sizes and weights by their Hugging Face names, float32."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 96
    context: int = 256
    theta: float = 5000.0
    epsilon: float = 1e-5
    tied: bool = True
    biased: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        vocab = len(TOKENS)

        def matrix(rows: int, columns: int) -> NDArray[np.float32]:
            # Large enough that the distributions are far from flat.
            weights: NDArray[np.float32] = rng.standard_normal((rows, columns), np.float32)
            return weights * np.float32(2 / columns**0.5)

        def gamma(size: int = 0) -> NDArray[np.float32]:
            return rng.uniform(0.5, 1.5, size or self.hidden).astype(np.float32)

        weights = {"model.embed_tokens.weight": matrix(vocab, self.hidden), "model.norm.weight": gamma()}
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            weights[f"{layer}.input_layernorm.weight"] = gamma()
            weights[f"{layer}.post_attention_layernorm.weight"] = gamma()
            for part, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                weights[f"{layer}.self_attn.{part}_proj.weight"] = matrix(heads * self.head_dim, self.hidden)
                if self.biased:
                    weights[f"{layer}.self_attn.{part}_proj.bias"] = gamma(heads * self.head_dim)
            weights[f"{layer}.self_attn.o_proj.weight"] = matrix(self.hidden, self.heads * self.head_dim)
            weights[f"{layer}.mlp.gate_proj.weight"] = matrix(self.inner, self.hidden)
            weights[f"{layer}.mlp.up_proj.weight"] = matrix(self.inner, self.hidden)
            weights[f"{layer}.mlp.down_proj.weight"] = matrix(self.hidden, self.inner)
        if not self.tied:
            weights["lm_head.weight"] = matrix(vocab, self.hidden)
        self.weights = weights
        self.config = {
            "architectures": ["Qwen2ForCausalLM" if self.biased else "LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "vocab_size": vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 257,
            "eos_token_id": 258,
            "torch_dtype": "float32",
            **self.config,
        }

    def rotate(self, states: Array, frequencies: Array) -> Array:
        """Rotary embedding, halves, of states [S, heads, head_dim] at positions 0..S-1."""
        angles = np.outer(np.arange(states.shape[0]), frequencies)[:, None, :]
        half = self.head_dim // 2
        first, second = states[..., :half], states[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def frequencies(self) -> Array:
        return np.array([self.theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)])

    def logits(self, tokens: list[int], frequencies: Array | None = None) -> Array:
        """Return the logits [S, vocab] of one sequence, computed the slow and obvious way."""
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        rotary = self.frequencies() if frequencies is None else frequencies
        states = w["model.embed_tokens.weight"][tokens]
        causal = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            normed = self.norm(states, w[f"{layer}.input_layernorm.weight"])
            parts = {}
            for part in "qkv":
                name = f"{layer}.self_attn.{part}_proj"
                value = normed @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)
                parts[part] = value.reshape(len(tokens), -1, self.head_dim)
            queries, keys = self.rotate(parts["q"], rotary), self.rotate(parts["k"], rotary)
            attended = np.empty_like(queries)
            for head in range(self.heads):
                shared = head * self.kv_heads // self.heads
                scores = queries[:, head] @ keys[:, shared].T / np.sqrt(self.head_dim) + causal
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                attended[:, head] = scores / scores.sum(axis=1, keepdims=True) @ parts["v"][:, shared]
            states = states + attended.reshape(len(tokens), -1) @ w[f"{layer}.self_attn.o_proj.weight"].T
            normed = self.norm(states, w[f"{layer}.post_attention_layernorm.weight"])
            gate = normed @ w[f"{layer}.mlp.gate_proj.weight"].T
            up = normed @ w[f"{layer}.mlp.up_proj.weight"].T
            states = states + (gate / (1 + np.exp(-gate)) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
        states = self.norm(states, w["model.norm.weight"])
        return states @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T

    def norm(self, states: Array, gamma: Array) -> Array:
        normed: Array = states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + self.epsilon) * gamma
        return normed

    def save(self, folder: Path, kind: str = "F32") -> dict[str, Path]:
        """Write a Hugging Face folder and return its files by name."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
        words = {
            "bos_token": "<|bos|>",
            "eos_token": {"content": "<|end|>"},
            "chat_template": "{{ messages }}",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        write_safetensors(folder / "model.safetensors", self.weights, kind)
        return {path.name: path for path in folder.iterdir()}


def write_safetensors(path: Path, weights: dict[str, NDArray[np.float32]], kind: str = "F32") -> None:
    """Write ``weights`` as F32, F16 or BF16 (cut, not rounded)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, value in weights.items():
        if kind == "BF16":
            blob = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            blob = value.astype("<f4" if kind == "F32" else "<f2").tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


LIMITS = "[quality]\nperplexity = { max_ratio = 1.05 }\n"


def recipe_text(name: str, members: dict[str, Path], source: str, extra: str = LIMITS) -> str:
    """Return a ``decoder-safetensors`` recipe over ``members``; ``source`` is the source's first lines."""
    pins = "\n".join(
        f'"{member}" = {{ path = "{member}", sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}" }}'
        for member, path in members.items()
    )
    return f"""
name = "{name}"
kind = "decoder-safetensors"
default = false
version = "1"
task = "chat"
engine = "decoder-onnx"
description = "A tiny random decoder."
license = "CC0-1.0"
owned_by = "tests"
created = 1
{extra}
[[source]]
{source}
license = "CC0-1.0"
[source.members]
{pins}
"""
