"""The rotated basis: orthogonal, exact in 8 bits, and without outliers."""

from __future__ import annotations

import numpy as np
import pytest

from model_packs.decoder.rotation import Rotation


@pytest.mark.parametrize("size", [16, 64, 96, 576, 896, 960, 1536, 2 * 131])
def test_rotation_is_orthogonal_and_its_integers_are_exact(size: int) -> None:
    rotation = Rotation(size)
    matrix = rotation.integers().astype(np.float64) / float(rotation.divisor)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    columns = np.random.default_rng(1).standard_normal((size, 5)).astype(np.float32)
    np.testing.assert_allclose(rotation.turn(columns), matrix.T @ columns, atol=1e-5)


@pytest.mark.parametrize("size", [64, 576, 960, 2048])
def test_an_outlier_is_spread_over_the_channels(size: int) -> None:
    columns = np.zeros((size, 1), np.float32)
    columns[size // 3] = 1
    assert np.abs(Rotation(size).turn(columns)).max() < 12 / size**0.5


def test_every_machine_turns_weights_to_the_same_bytes() -> None:
    columns = np.random.default_rng(1).standard_normal((576, 7)).astype(np.float32)
    rotation = Rotation(576)
    whole = rotation.turn(columns)
    # No sum depends on how many columns are turned at once, as it would in a product of matrices.
    for column in range(7):
        np.testing.assert_array_equal(rotation.turn(columns[:, column : column + 1])[:, 0], whole[:, column])
