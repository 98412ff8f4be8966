"""A decoder as the graph writer sees it, wherever its weights came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.errors import BuildError

FloatArray = NDArray[np.float32]
# Gives a tensor by its name, float32.
TensorSource = Callable[[str], FloatArray]

# The graph holds a table of rotary angles for every position.
MAX_CONTEXT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a Llama-style decoder: RMSNorm, rotary half-split attention with grouped queries, SwiGLU.

    ``inverse_frequencies`` float64 [head_dim / 2] are the rotary frequencies after any scaling;
    ``tied`` says that the head is the embedding; ``attention_bias`` that q, k and v have biases.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    inverse_frequencies: NDArray[np.float64]
    tied: bool
    attention_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse shapes that the graph cannot express."""
        sizes = (self.layers, self.heads, self.kv_heads, self.head_dim, self.vocab_size, self.hidden_size)
        if min(*sizes, self.intermediate_size) < 1:
            raise BuildError("the model's configuration has a size below 1")
        if not 1 <= self.context_length <= MAX_CONTEXT:
            raise BuildError(f"a context of {self.context_length} tokens is not served (most: {MAX_CONTEXT})")
        if not np.isfinite(self.inverse_frequencies).all():
            raise BuildError("the model's rotary frequencies are not numbers")
        if self.heads % self.kv_heads:
            raise BuildError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads")
        if self.head_dim % 16 or self.inverse_frequencies.shape != (self.head_dim // 2,):
            raise BuildError(
                f"head size {self.head_dim} with {self.inverse_frequencies.size} frequencies is not served"
            )


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """A decoder's configuration, its tensors on demand, and what turns text into tokens and back.

    ``tensor(name)`` returns float32, matrices as [out, in]; it reads when called, so that a large
    model is never in memory at once. Names: ``embedding`` [vocab, hidden], ``head`` (if not tied),
    ``final_norm``, and per layer ``layer.{i}.`` + ``attention_norm``, ``q``, ``k``, ``v`` (and
    ``q_bias``...), ``o``, ``mlp_norm``, ``gate``, ``up``, ``down``. ``float_source`` says that the
    matrices come as floats, not quantised already.
    """

    config: DecoderConfig
    tensor: TensorSource
    float_source: bool
    tokenizer: str
    chat_template: str | None
    bos_token: str
    eos_token: str
    eos_token_ids: list[int]


def tensor_shape(part: str, config: DecoderConfig) -> tuple[int, ...]:
    """Return the shape of the tensor whose name ends in ``part``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "q_bias": (queries,),
        "k_bias": (keys,),
        "v_bias": (keys,),
        "o": (hidden, queries),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    return shapes.get(part, (hidden,))  # the norms


def parameter_count(config: DecoderConfig) -> int:
    """Return the number of weights of the model."""
    qkv = (config.heads + 2 * config.kv_heads) * config.head_dim
    layer = config.hidden_size * (qkv + config.heads * config.head_dim + 3 * config.intermediate_size + 2)
    layer += qkv if config.attention_bias else 0
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied else 2)
    return config.layers * layer + embeddings + config.hidden_size


def rotary_frequencies(theta: float, dimensions: int, scaling: dict[str, Any] | None) -> NDArray[np.float64]:
    """Return the inverse frequencies of rotary embedding, float64 [dimensions / 2].

    ``scaling`` is Hugging Face's ``rope_scaling``: absent, ``default``, ``linear``, or ``llama3``
    (the frequency-dependent stretch of Llama 3.1). Raises BuildError for any other.
    """
    frequencies = theta ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if scaling is None or kind == "default":
        return frequencies
    try:
        factor = float(scaling["factor"])
        if kind == "linear":
            return frequencies / factor
        if kind == "llama3":
            low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
            turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
            # Slow waves (few turns in the trained context) are stretched, fast ones kept, those between blended.
            blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
            return frequencies * (blend + (1.0 - blend) / factor)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BuildError(f"the model's rope scaling is incomplete: {error}") from error
    raise BuildError(f"rope scaling {kind!r} is not served; known are default, linear and llama3")


def rotary_tables(config: DecoderConfig) -> tuple[FloatArray, FloatArray]:
    """Return the cosines and sines of every position, float32 [context_length, head_dim / 2] each."""
    angles = np.arange(config.context_length, dtype=np.float64)[:, None] * config.inverse_frequencies[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
