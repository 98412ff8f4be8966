"""Quantised weights: bounds on what they lose, and nothing lost from a source that has them already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_packs.decoder.quantize import quantize_blocks, quantize_rows
from model_packs.errors import BuildError


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    blocks=st.integers(1, 4),
    size=st.sampled_from([16, 32, 64]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
)
def test_no_weight_moves_by_more_than_half_a_step(
    seed: int, rows: int, blocks: int, size: int, magnitude: float
) -> None:
    weights = (np.random.default_rng(seed).standard_normal((rows, blocks * size)) * magnitude).astype(
        np.float32
    )
    values, scales = quantize_blocks(weights, size)
    assert values.shape == (rows, blocks, size)
    assert values.min() >= 1
    restored = (values.astype(np.float64) - 128) * scales[:, :, None]
    error = np.abs(restored.reshape(weights.shape) - weights)
    assert (error.reshape(values.shape) <= scales[:, :, None] * 0.5001).all()


def test_eight_bit_sources_come_back_exactly() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(-127, 128, (6, 4, 32))
    stored[:, :, 5] = 127  # every block of such a source has its largest value at the end of the scale
    scale = rng.uniform(0.001, 0.1, (6, 4)).astype(np.float16).astype(np.float32)
    values, scales = quantize_blocks((stored * scale[:, :, None]).astype(np.float32).reshape(6, 128), 32)
    np.testing.assert_array_equal(values, stored + 128)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)


def test_zeros_stay_zero() -> None:
    values, scales = quantize_blocks(np.zeros((2, 32), np.float32), 32)
    assert (values == 128).all()
    assert (scales == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    weights = np.ones((2, 32), np.float32)
    weights[1, 3] = bad
    with pytest.raises(BuildError, match="finite"):
        quantize_blocks(weights, 32)


def test_width_must_be_whole_blocks() -> None:
    with pytest.raises(BuildError, match="40 inputs"):
        quantize_blocks(np.ones((2, 40), np.float32), 32)


def unpacked(values: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the 4-bit values [out, blocks, block] of bytes that hold two each, around 0."""
    halves = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1)
    return halves.astype(np.int16) - 8


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([32, 64]), sign=st.sampled_from([-1, 1]))
def test_four_bits_move_no_weight_by_more_than_a_step(seed: int, size: int, sign: int) -> None:
    weights = sign * np.abs(np.random.default_rng(seed).standard_normal((3, 2 * size))).astype(np.float32)
    weights[:, 1::3] *= -0.5
    values, scales = quantize_blocks(weights, size, 4)
    assert values.shape == (3, 2, size // 2)
    error = np.abs(unpacked(values) * scales[:, :, None] - weights.reshape(3, 2, size))
    # Half a step, but for what lies beyond 7 steps opposite the block's largest.
    assert (error <= np.abs(scales)[:, :, None] * 1.0001).all()
    inside = np.abs(weights.reshape(3, 2, size)) <= 7 * np.abs(scales)[:, :, None]
    assert (error <= np.abs(scales)[:, :, None] * np.where(inside, 0.5001, 1.0001)).all()


def test_four_bit_sources_come_back_exactly() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(-8, 8, (6, 4, 32))
    stored[:, :, 5] = -8  # such sources put every block's largest there
    scale = rng.uniform(0.001, 0.1, (6, 4)) * rng.choice([-1, 1], (6, 4))
    values, scales = quantize_blocks((stored * scale[:, :, None]).astype(np.float32).reshape(6, 128), 32, 4)
    np.testing.assert_array_equal(unpacked(values), stored)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)


def test_rows_have_a_scale_each() -> None:
    weights = np.random.default_rng(2).standard_normal((5, 48)).astype(np.float32)
    weights[3] = 0
    values, scales = quantize_rows(weights)
    assert values.shape == (48, 5)
    assert np.abs(values).max(axis=0).tolist() == [127, 127, 127, 0, 127]
    assert (np.abs(values.T * scales[:, None] - weights) <= scales[:, None] * 0.5001).all()


def test_rows_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BuildError, match="finite"):
        quantize_rows(np.array([[1, np.inf]], np.float32))
