"""How much of a prompt another one has computed already."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.generation.prefixes import (
    LEAST_COMPUTED_TOKENS,
    LEAST_SHARED_TOKENS,
    common_tokens,
    shared_tokens,
)

TOKENS = st.lists(st.integers(0, 1), max_size=40)


def ids(tokens: list[int]) -> NDArray[np.int64]:
    return np.array(tokens, np.int64)


def one_by_one(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(TOKENS, TOKENS, TOKENS)
def test_prompts_share_what_they_begin_with(start: list[int], one: list[int], other: list[int]) -> None:
    expected = one_by_one(start + one, start + other)
    assert common_tokens(ids(start + one), ids(start + other)) == expected
    shared = shared_tokens(ids(start + one), ids(start + other))
    most = min(expected, len(start + one) - LEAST_COMPUTED_TOKENS)
    assert shared == (most if most >= LEAST_SHARED_TOKENS else 0)


def test_two_tokens_are_always_computed() -> None:
    same = ids(list(range(100)))
    assert shared_tokens(same, same) == 98
    assert shared_tokens(same[:99], same) == 97
    assert shared_tokens(same, same[:98]) == shared_tokens(same, same[:99]) == 98


def test_a_short_beginning_is_not_worth_it() -> None:
    same = ids(list(range(100)))
    assert shared_tokens(same, same[:LEAST_SHARED_TOKENS]) == LEAST_SHARED_TOKENS
    assert shared_tokens(same, same[: LEAST_SHARED_TOKENS - 1]) == 0
    assert shared_tokens(same[:2], same) == shared_tokens(same[:1], same) == 0
