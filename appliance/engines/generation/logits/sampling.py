"""Drawing the next token from one row of logits, in the order temperature, top-k, top-p, min-p, draw.

The vocabulary is never sorted: top-k is a threshold found by partition, top-p a threshold found
by halving the candidates, and the draw walks block sums instead of a full cumulative sum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Logits, Sampling

GREEDY_BELOW = 1e-5
# Below this many candidates a sort costs less than another halving.
SORTED_AT_ONCE = 1024
DRAW_BLOCK = 256
# Weights relative to the best token's, tried first when looking for the nucleus.
LIKELY_FLOORS = (0.05, 0.001)

TokenIds = NDArray[np.intp]
Weights = NDArray[np.float32]


def row_generator(seed: int | None) -> np.random.Generator:
    """Return the random stream of one row: reproducible for a seed, fresh for None and -1."""
    if seed is None or seed == -1:
        return np.random.Generator(np.random.PCG64())
    return np.random.Generator(np.random.PCG64(seed & 0xFFFF_FFFF_FFFF_FFFF))  # entropy is unsigned


def sample(logits: Logits, sampling: Sampling, generator: np.random.Generator) -> int:
    """Draw the next token id from ``logits`` [vocab_size].

    Greedy takes the lowest id of the largest logits. Raises EngineError when the largest logit is
    not a finite number, which means that the model itself failed.
    """
    best = int(logits.argmax())  # the first NaN wins an argmax, so one check covers the row
    if not math.isfinite(logits[best]):
        raise EngineError("The model gave logits that are not numbers.")
    if sampling.temperature < GREEDY_BELOW:
        return best
    token_ids, weights = candidates(logits, sampling, best)
    position = _draw(weights, generator)
    return position if token_ids is None else int(token_ids[position])


def candidates(logits: Logits, sampling: Sampling, best: int) -> tuple[TokenIds | None, Weights]:
    """Return the token ids that may be drawn, ascending, and their weights (largest 1).

    None in place of the ids means the whole vocabulary. ``best`` is the id of the largest logit.
    """
    token_ids: TokenIds | None = None
    vocab_size = logits.shape[0]
    largest = logits[best]
    if 0 < sampling.top_k < vocab_size:
        rank = vocab_size - sampling.top_k
        token_ids = np.flatnonzero(logits >= np.partition(logits, rank)[rank])  # ties with the k-th stay
        logits = logits[token_ids]
    weights = logits - largest
    weights /= np.float32(sampling.temperature)
    np.exp(weights, out=weights)
    if sampling.top_p < 1.0:
        kept = _nucleus(weights, sampling.top_p)
        token_ids = kept if token_ids is None else token_ids[kept]
        weights = weights[kept]
    if sampling.min_p > 0.0:
        # Weights are relative to the best token's, and so is this threshold.
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))
        token_ids = kept if token_ids is None else token_ids[kept]
        weights = weights[kept]
    return token_ids, weights


def _nucleus(weights: Weights, top_p: float) -> TokenIds:
    """Return the positions of the smallest best-first set whose share reaches ``top_p``, ascending.

    Of equal weights the lower position is better.
    """
    total = float(weights.sum(dtype=np.float64))
    target = top_p * total
    # All that is below the last floor sums to less than 1 - top_p, so the nucleus lies above it;
    # it mostly lies above a much higher one too, which leaves few candidates to collect.
    for floor in (*LIKELY_FLOORS, (1.0 - top_p) * total / weights.size):
        positions = np.flatnonzero(weights >= floor)
        values = weights[positions]
        if float(values.sum(dtype=np.float64)) >= target:
            break
    threshold = _reaching(values, target)
    kept = values > threshold
    missing = target - float(values[kept].sum(dtype=np.float64))
    ties = np.flatnonzero(values == threshold)
    needed = max(1, math.ceil(missing / threshold - 1e-9)) if threshold > 0 else 1
    kept[ties[:needed]] = True
    return positions[kept]


def _reaching(values: Weights, target: float) -> float:
    """Return the value at which the sum of ``values``, taken from the largest on, reaches ``target``."""
    while values.size > SORTED_AT_ONCE:
        middle = values.size // 2
        values = np.partition(values, middle)
        upper = float(values[middle:].sum(dtype=np.float64))
        if upper >= target:
            values = values[middle:]
        else:
            target -= upper
            values = values[:middle]
    descending = np.sort(values)[::-1]
    reached = int(np.searchsorted(np.cumsum(descending, dtype=np.float64), target))
    return float(descending[min(reached, descending.size - 1)])  # rounding may leave the sum just short


def _draw(weights: Weights, generator: np.random.Generator) -> int:
    """Return a position drawn in proportion to ``weights`` (inverse of the cumulative sum)."""
    starts = np.arange(0, weights.size, DRAW_BLOCK)
    block_ends = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    mark = generator.random() * float(block_ends[-1])
    block = min(int(np.searchsorted(block_ends, mark, side="right")), starts.size - 1)
    before = float(block_ends[block - 1]) if block else 0.0
    start = block * DRAW_BLOCK
    ends = np.cumsum(weights[start : start + DRAW_BLOCK], dtype=np.float64)
    position = start + min(int(np.searchsorted(ends, mark - before, side="right")), ends.size - 1)
    # Rounding at a block's end may point at a weight that underflowed to zero.
    return position if weights[position] > 0 else int(weights.argmax())
