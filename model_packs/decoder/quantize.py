"""Symmetric 8-bit block quantisation, as MatMulNBits and GatherBlockQuantized read it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.weights import FloatArray
from model_packs.errors import BuildError

ZERO_POINT = 128
LEVELS = 127
# Rows at a time: keeps the scratch arrays in the cache.
_ROWS = 512


def quantize_blocks(weights: FloatArray, block_size: int) -> tuple[NDArray[np.uint8], FloatArray]:
    """Quantise ``weights`` float32 [out, in] in blocks of ``block_size`` along ``in``.

    Return the values uint8 [out, in / block_size, block_size], offset by 128, and the scales float32
    [out, in / block_size]: weight = (value - 128) * scale. Q8_0 sources come back bit for bit.
    Raises BuildError when ``in`` is not a whole number of blocks or a weight is not finite.
    """
    rows, columns = weights.shape
    if columns % block_size:
        raise BuildError(f"a matrix with {columns} inputs cannot be cut into blocks of {block_size}")
    blocks = columns // block_size
    values = np.empty((rows, blocks, block_size), dtype=np.uint8)
    scales = np.empty((rows, blocks), dtype=np.float32)
    for start in range(0, rows, _ROWS):
        part = weights[start : start + _ROWS].reshape(-1, blocks, block_size)
        peak = np.maximum(part.max(axis=2), -part.min(axis=2))
        if not np.isfinite(peak).all():
            raise BuildError("the model has a weight that is not a finite number")
        scale = peak / np.float32(LEVELS)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        scaled = part * inverse[:, :, None]
        # Adding the offset before the cut to uint8 makes truncation round to the nearest.
        np.add(scaled, np.float32(ZERO_POINT + 0.5), out=scaled)
        values[start : start + _ROWS] = scaled.astype(np.uint8)
        scales[start : start + _ROWS] = scale
    return values, scales
