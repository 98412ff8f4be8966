"""Bias, constraint, minimum and penalties, in the contract's order; compared with token-by-token loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.generation.contract import Logits, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.logits.processing import LogitsProcessor
from appliance.packs.manifest import Decoder
from tests.engines.generation.conftest import Plain, answer, ask, log_softmax, request, text_ids

VOCABULARY = 12
EOS = frozenset({0, 7})
IDS = st.integers(0, VOCABULARY - 1)


class _Allowing:
    """A constraint that allows some tokens at each step, and is finished after the last step."""

    def __init__(self, steps: list[set[int]], accepted: tuple[int, ...] = ()) -> None:
        self._steps = steps
        self.accepted = accepted

    def start(self) -> _Allowing:
        return _Allowing(self._steps)

    @property
    def finished(self) -> bool:
        return len(self.accepted) >= len(self._steps)

    def mask(self, logits: Logits) -> None:
        allowed = set(EOS) if self.finished else self._steps[len(self.accepted)]
        logits[sorted(set(range(VOCABULARY)) - allowed)] = -np.inf

    def accept(self, token_id: int) -> None:
        self.accepted = (*self.accepted, token_id)

    def copy(self) -> _Allowing:
        return _Allowing(self._steps, self.accepted)


def processed(processor: LogitsProcessor, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = logits.copy()
    processor.process(logits)
    return logits


def by_hand(
    logits: list[float], prompt: list[int], output: list[int], sampling: Sampling, min_tokens: int
) -> list[float]:
    values = list(logits)
    for token_id, bias in sampling.logit_bias:
        values[token_id] += bias
    if len(output) < min_tokens:
        for token_id in EOS:
            values[token_id] = -np.inf
    for token_id in set(prompt) | set(output):
        value = values[token_id]
        repetition = sampling.repetition_penalty
        values[token_id] = value / repetition if value > 0 else value * repetition
    for token_id in set(output):
        values[token_id] -= sampling.frequency_penalty * output.count(token_id)
        values[token_id] -= sampling.presence_penalty
    return values


@given(
    prompt=st.lists(IDS, min_size=1, max_size=20),
    output=st.lists(IDS, max_size=150),
    repetition=st.sampled_from([0.5, 1.0, 1.5]),
    frequency=st.sampled_from([-1.0, 0.0, 0.25]),
    presence=st.sampled_from([-0.5, 0.0, 2.0]),
    bias=st.dictionaries(IDS, st.sampled_from([-100.0, -1.5, 3.0, 100.0]), max_size=4),
    min_tokens=st.integers(0, 3),
)
def test_the_steps_are_those_of_a_loop_over_tokens(
    prompt: list[int],
    output: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    bias: dict[int, float],
    min_tokens: int,
) -> None:
    sampling = Sampling(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=tuple(bias.items()),
    )
    processor = LogitsProcessor(
        request(prompt, 99, sampling=sampling, min_tokens=min_tokens), EOS, VOCABULARY
    )
    for token_id in output:
        processor.accept(token_id)
    logits = [(place % 5) - 2.25 for place in range(VOCABULARY)]
    expected = by_hand(logits, prompt, output, sampling, min_tokens)
    np.testing.assert_allclose(
        processed(processor, np.array(logits, np.float32)), expected, rtol=1e-6, atol=1e-5
    )


@given(st.lists(IDS, min_size=1, max_size=90), st.lists(IDS, max_size=90), st.lists(IDS, max_size=90))
def test_many_different_tokens_are_counted(prompt: list[int], one: list[int], other: list[int]) -> None:
    """Two forks of one state go their own ways."""
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5)
    processor = LogitsProcessor(request(prompt, 999, sampling=sampling), EOS, VOCABULARY)
    fork = processor.fork()
    for tokens, each in ((one, processor), (other, fork)):
        for token_id in tokens:
            each.accept(token_id)
    logits = [1.0 + place for place in range(VOCABULARY)]
    for tokens, each in ((one, processor), (other, fork)):
        expected = by_hand(logits, prompt, tokens, sampling, 0)
        np.testing.assert_allclose(
            processed(each, np.array(logits, np.float32)), expected, rtol=1e-5, atol=1e-4
        )


def test_more_tokens_than_the_first_table_has_room_for_are_counted() -> None:
    processor = LogitsProcessor(request([1], 999, sampling=Sampling(presence_penalty=1.0)), EOS, 1000)
    for token_id in range(0, 1000, 3):
        processor.accept(token_id)
        processor.accept(token_id)
    logits = processed(processor, np.zeros(1000, np.float32))
    assert (logits[::3] == -1).all()
    assert logits.sum() == -334


def test_a_constraint_is_masked_after_the_bias_and_before_the_penalties() -> None:
    constraint = _Allowing([{1, 2}, {3}])
    sampling = Sampling(logit_bias=((5, 100.0), (1, -1.0)), presence_penalty=0.5)
    processor = LogitsProcessor(request([4], 9, sampling=sampling, constraint=constraint), EOS, VOCABULARY)
    logits = processed(processor, np.ones(VOCABULARY, np.float32))
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [1, 2]
    assert logits[[1, 2]].tolist() == [0, 1]
    processor.accept(2)
    assert np.flatnonzero(np.isfinite(processed(processor, np.ones(VOCABULARY, np.float32)))).tolist() == [3]
    assert constraint.accepted == ()  # other sequences start anew


def test_below_the_minimum_end_and_stop_tokens_are_forbidden() -> None:
    fields = {"stop_token_ids": frozenset({3, 4000}), "min_tokens": 1}
    processor = LogitsProcessor(request([1], 9, **fields), EOS, VOCABULARY)
    logits = processed(processor, np.zeros(VOCABULARY, np.float32))
    assert np.flatnonzero(np.isneginf(logits)).tolist() == [0, 3, 7]
    processor.accept(1)
    assert np.isfinite(processed(processor, np.zeros(VOCABULARY, np.float32))).all()


def test_an_ignored_end_of_sequence_is_no_end_to_forbid() -> None:
    fields = {"stop_token_ids": frozenset({3}), "min_tokens": 1, "ignore_eos": True}
    logits = processed(
        LogitsProcessor(request([1], 9, **fields), EOS, VOCABULARY), np.zeros(VOCABULARY, np.float32)
    )
    assert np.flatnonzero(np.isneginf(logits)).tolist() == [3]


def test_a_constraint_that_is_fulfilled_wins_over_the_minimum() -> None:
    for steps in ([], [{0}]):  # finished; and nothing but an end allowed
        processor = LogitsProcessor(
            request([1], 9, min_tokens=5, constraint=_Allowing(steps)), EOS, VOCABULARY
        )
        logits = processed(processor, np.zeros(VOCABULARY, np.float32))
        assert np.flatnonzero(np.isfinite(logits)).tolist() == ([0] if steps else [0, 7])


def test_a_constraint_that_may_end_or_go_on_goes_on_below_the_minimum() -> None:
    processor = LogitsProcessor(
        request([1], 9, min_tokens=5, constraint=_Allowing([{0, 2}])), EOS, VOCABULARY
    )
    logits = processed(processor, np.zeros(VOCABULARY, np.float32))
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [2]


def test_forks_have_their_own_place_in_a_constraint() -> None:
    processor = LogitsProcessor(request([1], 9, constraint=_Allowing([{1, 2}, {3}])), EOS, VOCABULARY)
    fork = processor.fork()
    fork.accept(1)
    assert np.flatnonzero(np.isfinite(processed(fork, np.zeros(VOCABULARY, np.float32)))).tolist() == [3]
    assert np.flatnonzero(np.isfinite(processed(processor, np.zeros(VOCABULARY, np.float32)))).tolist() == [
        1,
        2,
    ]


def test_what_is_not_asked_for_changes_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=VOCABULARY).astype(np.float32)
    assert (processed(LogitsProcessor(request([1], 9), EOS, VOCABULARY), logits) == logits).all()


@pytest.mark.parametrize(
    ("sampling", "min_tokens"),
    [
        (Sampling(temperature=0, repetition_penalty=1.4), 0),
        (Sampling(temperature=0, repetition_penalty=0.7), 0),
        (Sampling(temperature=0, frequency_penalty=1.5), 0),
        (Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=-0.5), 8),
        (Sampling(temperature=0, logit_bias=((28, -100.0), (30, 2.0), (253, 5.0))), 0),
        (
            Sampling(
                temperature=0, logit_bias=((13855, -3.0),), repetition_penalty=1.2, presence_penalty=1.0
            ),
            5,
        ),
    ],
)
async def test_answers_are_those_of_a_slow_loop(
    engine: GenerationEngine, plain: Plain, decoder: Decoder, sampling: Sampling, min_tokens: int
) -> None:
    prompt = await text_ids(engine, "9 apples and 9 apples are")
    ending = [*decoder.eos_token_ids]

    def choose(logits: NDArray[np.float64], output: list[int]) -> int:
        for token_id, bias in sampling.logit_bias:
            logits[token_id] += bias
        if len(output) < min_tokens:
            logits[ending] = -np.inf
        for token_id in set(prompt) | set(output):
            factor = sampling.repetition_penalty
            logits[token_id] = (
                logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
            )
        for token_id in set(output):
            logits[token_id] -= (
                sampling.frequency_penalty * output.count(token_id) + sampling.presence_penalty
            )
        return int(logits.argmax())

    produced, logits = plain.generate(prompt, 10, choose)
    fields = {"sampling": sampling, "min_tokens": min_tokens, "ignore_eos": not min_tokens}
    found = await answer(ask(engine, prompt, 10, **fields, logprobs=2))
    if min_tokens:  # the answer may end behind the minimum
        produced = produced[: len(found.token_ids)]
        assert len(produced) > min_tokens
    assert found.token_ids == produced
    for each, row in zip(found.logprobs, logits, strict=False):
        expected = log_softmax(row)
        assert abs(each.logprob - expected[each.token_id]) <= 1e-3
        assert each.logprob == each.top[0][1]
