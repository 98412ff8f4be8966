"""Symmetric quantisation of weights, as ONNX Runtime's kernels read it: in blocks of 8 or 4 bits, or by rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.weights import FloatArray
from model_packs.errors import BuildError

Bits = Literal[4, 8]

LEVELS = 127
# Rows at a time: keeps the scratch arrays in the cache.
_ROWS = 512


def quantize_blocks(
    weights: FloatArray, block_size: int, bits: Bits = 8
) -> tuple[NDArray[np.uint8], FloatArray]:
    """Quantise ``weights`` float32 [out, in] in blocks of ``block_size`` along ``in``.

    Return the values uint8 [out, in / block_size, block_size * bits / 8] around the middle of their
    range (4-bit ones two to a byte, the first in the low half), and the scales float32
    [out, in / block_size]: weight = (value - 2 ** (bits - 1)) * scale. Sources in the same form,
    Q8_0 and Q4_0, come back bit for bit. Raises BuildError when ``in`` is not a whole number of
    blocks or a weight is not finite.
    """
    rows, columns = weights.shape
    if columns % block_size:
        raise BuildError(f"a matrix with {columns} inputs cannot be cut into blocks of {block_size}")
    blocks = columns // block_size
    values = np.empty((rows, blocks, block_size * bits // 8), dtype=np.uint8)
    scales = np.empty((rows, blocks), dtype=np.float32)
    for start in range(0, rows, _ROWS):
        part = weights[start : start + _ROWS].reshape(-1, blocks, block_size)
        scale = _finite(_eight_bit_scale(part) if bits == 8 else _four_bit_scale(part))
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        scaled = part * inverse[:, :, None]
        # Adding the offset before the cut to uint8 makes truncation round to the nearest.
        np.add(scaled, np.float32((1 << (bits - 1)) + 0.5), out=scaled)
        if bits == 4:
            steps = np.minimum(scaled, np.float32(15)).astype(np.uint8)
            values[start : start + _ROWS] = steps[:, :, ::2] | steps[:, :, 1::2] << 4
        else:
            values[start : start + _ROWS] = scaled.astype(np.uint8)
        scales[start : start + _ROWS] = scale
    return values, scales


def quantize_rows(weights: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Quantise ``weights`` float32 [out, in] with one scale for each output.

    Return the values int8 [in, out], within +-127, and the scales float32 [out]. Raises BuildError
    when a weight is not finite.
    """
    scale = _finite(np.maximum(weights.max(axis=1), -weights.min(axis=1)) / np.float32(LEVELS))
    scale[scale == 0] = 1
    return np.ascontiguousarray(np.rint(weights / scale[:, None]).astype(np.int8).T), scale


def _eight_bit_scale(blocks: FloatArray) -> FloatArray:
    peak: FloatArray = np.maximum(blocks.max(axis=2), -blocks.min(axis=2))
    return peak / np.float32(LEVELS)


def _four_bit_scale(blocks: FloatArray) -> FloatArray:
    """Return scales that put each block's largest weight, whatever its sign, on the far end, -8."""
    largest, smallest = blocks.max(axis=2), blocks.min(axis=2)
    scales: FloatArray = np.where(largest > -smallest, largest, smallest) / np.float32(-8)
    return scales


def _finite(scales: FloatArray) -> FloatArray:
    if not np.isfinite(scales).all():
        raise BuildError("the model has a weight that is not a finite number")
    return scales
