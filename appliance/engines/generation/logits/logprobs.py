"""Log probabilities of tokens and of the best ones beside them, from a row of logits.

A token's value and its value among the best are one and the same float64, so that clients may
compare them for equality (evaluation harnesses tell so whether a token was the greedy choice).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Logits, TokenLogprob


def log_sum_exp(logits: Logits) -> float:
    """Return log Σ exp over ``logits`` [vocab_size]. Raises EngineError when they are not numbers."""
    largest = np.float32(logits.max())
    if not math.isfinite(largest):
        raise EngineError("The model gave logits that are not numbers.")
    return float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def best(logits: Logits, count: int) -> NDArray[np.intp]:
    """Return the ids of the ``count`` largest logits, best first; of equal ones the lower id is better."""
    if count <= 0:
        return np.empty(0, dtype=np.intp)
    if count >= logits.size:
        candidates = np.arange(logits.size)
    else:
        threshold = np.partition(logits, logits.size - count)[logits.size - count]
        candidates = np.flatnonzero(logits >= threshold)  # ascending ids, ties included
    order = np.argsort(-logits[candidates], kind="stable")
    return candidates[order[:count]]


def token_logprob(logits: Logits, token_id: int, top: int, *, ranked: bool = False) -> TokenLogprob:
    """Return the log probability of ``token_id`` under ``logits`` [vocab_size], and the ``top`` best ones.

    ``ranked`` counts the token's place too. Raises EngineError when the logits are not numbers.
    """
    total = log_sum_exp(logits)
    value = logits[token_id]
    return TokenLogprob(
        token_id,
        float(value) - total,
        tuple((int(each), float(logits[each]) - total) for each in best(logits, top)),
        1 + int(np.count_nonzero(logits > value)) if ranked else 0,
    )
