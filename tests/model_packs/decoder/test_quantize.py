"""Eight-bit blocks: bounds on what they lose, and nothing lost from a source that has them already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_packs.decoder.quantize import quantize_blocks
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
