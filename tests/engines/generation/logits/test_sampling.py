"""The drawn token follows the published order of operations; compared with a naive full sort."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Sampling
from appliance.engines.generation.logits.sampling import candidates, row_generator, sample

LOGITS = st.lists(st.integers(-40, 40), min_size=1, max_size=80)


def naive(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """Sort everything, best first (lower ids first among equals), and cut in order."""
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if 0 < sampling.top_k < order.size:
        order = order[scaled[order] >= scaled[order[sampling.top_k - 1]]]
    weights = np.exp(scaled[order] - scaled.max())
    shares = weights / weights.sum()
    if sampling.top_p < 1:
        reached = int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1
        order, shares = order[:reached], shares[:reached] / shares[:reached].sum()
    likely = shares >= sampling.min_p * shares.max()
    order, shares = order[likely], shares[likely] / shares[likely].sum()
    return dict(zip(order.tolist(), shares.tolist(), strict=True))


def drawn_from(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    ids, weights = candidates(logits, sampling, int(logits.argmax()))
    positions = range(weights.size) if ids is None else ids.tolist()
    return dict(zip(positions, (weights / weights.sum()).tolist(), strict=True))


@given(
    LOGITS,
    st.floats(0.1, 2),
    st.one_of(st.just(-1), st.integers(1, 90)),
    # Odd shares keep clear of sums that are exactly reached, where rounding decides.
    st.integers(1, 99).map(lambda percent: percent / 100 + 0.00317),
    st.sampled_from([0.0, 0.0, 0.0503, 0.703]),
)
def test_candidates_and_shares_are_those_of_a_full_sort(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = (np.array(values) / 4).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=min(top_p, 1.0), min_p=min_p)
    expected = naive(logits, sampling)
    found = drawn_from(logits, sampling)
    if set(found) != set(expected):  # a share within rounding of top_p may fall on either side
        other = min(
            (naive(logits, msgspec.structs.replace(sampling, top_p=p)) for p in _near(sampling.top_p)),
            key=lambda shares: len(set(shares) ^ set(found)),
        )
        expected = other
    assert set(found) == set(expected)
    assert all(abs(found[token] - share) < 1e-4 for token, share in expected.items())


def _near(top_p: float) -> list[float]:
    return [top_p * (1 - 1e-6), min(top_p * (1 + 1e-6), 1.0)]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.05, 3.0])
def test_a_large_vocabulary_is_cut_like_a_small_one(top_p: float, spread: float) -> None:
    logits = np.random.default_rng(7).normal(size=49_152).astype(np.float32) * np.float32(spread)
    sampling = Sampling(top_p=top_p)
    expected, found = naive(logits, sampling), drawn_from(logits, sampling)
    assert abs(len(expected) - len(found)) <= 2  # float32 shares against float64
    assert len(set(expected) ^ set(found)) <= 2


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = np.array([1, 5, 5, 2], np.float32)
    generator = row_generator(None)
    assert sample(logits, Sampling(temperature=0.0, top_p=0.5, top_k=1), generator) == 1
    assert sample(logits, Sampling(temperature=9e-6), generator) == 1


def test_ties_with_the_kth_stay() -> None:
    logits = np.array([3, 1, 1, 0], np.float32)
    assert set(drawn_from(logits, Sampling(top_k=2))) == {0, 1, 2}


def test_equal_weights_in_the_nucleus_go_by_id() -> None:
    assert set(drawn_from(np.zeros(10, np.float32), Sampling(top_p=0.35))) == {0, 1, 2, 3}


def test_draws_follow_the_shares() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    generator = row_generator(11)
    counts = np.bincount([sample(logits, Sampling(), generator) for _ in range(8000)], minlength=4)
    np.testing.assert_allclose(counts / 8000, [0.5, 0.25, 0.125, 0.125], atol=0.02)


def test_draws_over_many_blocks_reach_every_part() -> None:
    logits = np.full(5000, -30, np.float32)
    logits[[0, 256, 2600, 4999]] = 5
    generator = row_generator(3)
    drawn = [sample(logits, Sampling(), generator) for _ in range(400)]
    assert set(drawn) == {0, 256, 2600, 4999}


def test_a_seed_repeats_and_none_does_not() -> None:
    logits = np.zeros(30_000, np.float32)

    def draws(seed: int | None) -> list[int]:
        generator = row_generator(seed)
        return [sample(logits, Sampling(seed=seed), generator) for _ in range(8)]

    assert draws(42) == draws(42)
    assert draws(-(2**63)) == draws(-(2**63))
    assert len({tuple(draws(seed)) for seed in (42, 43, None, None, -1, -1)}) == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    logits = np.zeros(100, np.float32)
    logits[50] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError):
            sample(logits, Sampling(temperature=temperature), row_generator(1))


@given(st.floats(1e-5, 2), st.integers(0, 2**31))
def test_extreme_logits_never_give_an_impossible_token(temperature: float, seed: int) -> None:
    logits = np.array([-np.inf, 1e4, -1e4, 9999.5, -np.inf], np.float32)
    token = sample(logits, Sampling(temperature=temperature, top_p=0.9), row_generator(seed))
    assert token in {1, 3}


def test_min_p_is_a_share_of_the_best_token_s_probability() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.1, 0.15], np.float32))
    assert set(drawn_from(logits, Sampling(min_p=0.29))) == {0, 1, 3}
    assert set(drawn_from(logits, Sampling(min_p=1.0))) == {0}
    assert set(drawn_from(logits, Sampling(min_p=0.29, top_k=2))) == {0, 1}


def test_what_a_mask_forbids_is_never_drawn() -> None:
    logits = np.full(3000, -np.inf, np.float32)
    logits[[5, 2900]] = 1.0
    for sampling in (
        Sampling(),
        Sampling(top_k=50),
        Sampling(top_p=0.99),
        Sampling(min_p=0.01, temperature=2.0),
    ):
        generator = row_generator(2)
        assert {sample(logits, sampling, generator) for _ in range(60)} == {5, 2900}
