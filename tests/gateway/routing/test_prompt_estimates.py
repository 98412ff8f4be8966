"""A provider's count of a prompt is expected from what it counted before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.routing.prompt_estimates import (
    LARGEST_OFFSET,
    LARGEST_RATIO,
    UNKNOWN_OFFSET,
    PromptEstimate,
)


def test_before_the_first_answer_a_template_is_allowed_for() -> None:
    assert PromptEstimate().most(10) == 10 + UNKNOWN_OFFSET


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0.5, LARGEST_RATIO - 1), st.integers(0, 500))),
    st.integers(0, 5000),
    st.floats(0.5, LARGEST_RATIO - 1),
)
def test_what_was_counted_once_is_expected_of_the_next_like_it(
    before: list[tuple[int, float, int]], guessed: int, ratio: float
) -> None:
    estimate = PromptEstimate()
    for tokens, factor, more in before:
        estimate.learn(tokens, round(tokens * factor) + more)
    counted = round(guessed * ratio)
    estimate.learn(guessed, counted)
    assert estimate.most(guessed) >= counted


@given(st.integers(0, 200), st.integers(0, 40))
def test_it_comes_down_to_what_a_steady_provider_counts(guessed: int, more: int) -> None:
    estimate = PromptEstimate()
    estimate.learn(guessed, guessed + 5000)
    for _ in range(300):
        estimate.learn(guessed, guessed + more)
    assert guessed + more <= estimate.most(guessed) <= guessed + more + 1


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 40))
def test_nonsense_is_kept_in_bounds(guessed: int, counted: int) -> None:
    estimate = PromptEstimate()
    estimate.learn(guessed, counted)
    assert guessed <= estimate.most(guessed)
    assert estimate.most(1000) <= LARGEST_RATIO * 1000 + min(max(counted, UNKNOWN_OFFSET), LARGEST_OFFSET) + 1


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 40))
def test_what_refuses_prompts_is_forgotten_but_not_that_templates_add_some(
    guessed: int, counted: int
) -> None:
    estimate = PromptEstimate()
    estimate.learn(guessed, counted)
    learned = estimate.most(100)
    for _ in range(300):
        estimate.doubt()
    assert min(learned, 100) <= estimate.most(100) <= min(learned, 100 + UNKNOWN_OFFSET + 1)
