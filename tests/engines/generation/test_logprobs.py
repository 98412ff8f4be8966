"""Log probabilities: a log-softmax in float64, the best ones in order, one number for one token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.logprobs import best, log_sum_exp, token_logprob

LOGITS = st.lists(st.integers(-40, 40) | st.just(-np.inf), min_size=1, max_size=80).filter(
    lambda values: max(values) > -np.inf
)


def array(values: list[float]) -> NDArray[np.float32]:
    return (np.array(values, np.float64) / 4).astype(np.float32)


@given(LOGITS, st.data())
def test_a_token_and_the_best_are_those_of_a_log_softmax(values: list[float], data: st.DataObject) -> None:
    logits = array(values)
    token_id = data.draw(st.integers(0, len(values) - 1))
    top = data.draw(st.integers(0, len(values) + 3))
    exact = logits.astype(np.float64)
    expected = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    order = np.argsort(-exact, kind="stable")[:top].tolist()
    found = token_logprob(logits, token_id, top, ranked=True)
    assert [each for each, _ in found.top] == order
    np.testing.assert_allclose([value for _, value in found.top], expected[order], atol=1e-6)
    np.testing.assert_allclose(found.logprob, expected[token_id], atol=1e-6)
    assert found.rank == 1 + int((exact > exact[token_id]).sum())
    assert dict(found.top).get(token_id, found.logprob) == found.logprob  # the very same number


@given(LOGITS)
def test_the_greedy_token_is_the_first_of_the_best(values: list[float]) -> None:
    logits = array(values)
    greedy = int(logits.argmax())
    found = token_logprob(logits, greedy, 1)
    assert found.top == ((greedy, found.logprob),)
    assert (found.rank, token_logprob(logits, greedy, 0, ranked=True).rank) == (0, 1)


def test_of_equal_ones_the_lower_id_is_better() -> None:
    assert best(array([1, 5, 5, 5, 2]), 2).tolist() == [1, 2]
    assert best(array([1, 5]), 0).tolist() == []


def test_a_large_vocabulary_sums_to_one() -> None:
    logits = np.random.default_rng(3).normal(size=49_152).astype(np.float32) * 5
    found = token_logprob(logits, 0, logits.size)
    assert abs(np.exp([value for _, value in found.top]).sum() - 1) < 1e-5


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_that_are_not_numbers_are_an_error(bad: list[float]) -> None:
    with pytest.raises(EngineError, match="not numbers"):
        log_sum_exp(np.array(bad, np.float32))
