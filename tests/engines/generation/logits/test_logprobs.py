"""Log probabilities: a log-softmax in float64, the best ones in order, one number for one token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Answer, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.logits.logprobs import best, log_sum_exp, token_logprob
from appliance.packs.manifest import Decoder
from tests.engines.generation.conftest import Plain, answer, ask, log_softmax, text_ids

# Attention rounds differently for one token than for many, and for a whole prompt than for its chunks.
ROUNDING = 1e-3
STORY = "Once upon a time, in a small village by the sea, there lived an old fisherman who"
APPLES = "9 apples and 9 apples are"

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


async def test_the_log_probabilities_of_an_answer_are_the_model_s(
    engine: GenerationEngine, plain: Plain
) -> None:
    prompt = await text_ids(engine, STORY)
    produced, logits = plain.generate(prompt, 8, lambda row, _: int(row.argmax()))
    found = await answer(ask(engine, prompt, 8, logprobs=5))
    assert found.token_ids == produced
    for each, row in zip(found.logprobs, log_softmax(np.array(logits)), strict=True):
        assert each.logprob == each.top[0][1] == max(value for _, value in each.top)  # to the last bit
        assert [token_id for token_id, _ in each.top] == np.argsort(-row, kind="stable")[:5].tolist()
        np.testing.assert_allclose([v for _, v in each.top], np.sort(row)[::-1][:5], atol=ROUNDING)
    assert found.cumulative_logprob == sum(each.logprob for each in found.logprobs)


async def test_the_temperature_and_what_it_cuts_do_not_change_log_probabilities(
    engine: GenerationEngine,
) -> None:
    prompt = await text_ids(engine, STORY)
    sampling = Sampling(temperature=1.7, top_p=0.4, top_k=3, min_p=0.1, seed=5)
    drawn = await answer(ask(engine, prompt, 8, logprobs=20, sampling=sampling))
    replayed = await answer(ask(engine, prompt, 8, logprobs=20, enforced=tuple(drawn.token_ids)))
    assert drawn.logprobs == replayed.logprobs
    assert all(len(each.top) == 20 for each in drawn.logprobs)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
async def test_enforcing_the_greedy_answer_gives_its_log_probabilities(
    engine: GenerationEngine, decoder: Decoder, temperature: float
) -> None:
    for text in (STORY, APPLES):
        prompt = await text_ids(engine, text)
        greedy = await answer(ask(engine, prompt, 10, logprobs=5))
        has_ended = greedy.token_ids[-1] in decoder.eos_token_ids
        enforced = tuple(greedy.token_ids) if has_ended else (*greedy.token_ids, decoder.eos_token_ids[0])
        sampling = Sampling(temperature=temperature, seed=1, top_p=0.5)
        found = await answer(ask(engine, prompt, 99, logprobs=5, enforced=enforced, sampling=sampling))
        assert (found.token_ids, found.text, found.finish_reason) == ([*enforced], greedy.text, "stop")
        count = len(greedy.token_ids)
        assert _difference(found, greedy, count) <= 1e-6


async def test_enforced_tokens_are_cut_at_the_most_tokens(engine: GenerationEngine) -> None:
    prompt = await text_ids(engine, STORY)
    words = await text_ids(engine, " went to the market and bought")
    found = await answer(ask(engine, prompt, 3, enforced=(*words, 2), logprobs=0))
    assert (found.token_ids, found.finish_reason) == (words[:3], "length")
    assert found.text == engine.decode(words[:3])
    assert [each.token_id for each in found.logprobs] == words[:3]


async def test_the_log_probabilities_of_a_prompt_are_those_of_one_run_over_it(
    engine: GenerationEngine, plain: Plain
) -> None:
    prompt = (await text_ids(engine, (STORY + " sold fish.\n") * 20))[:300]
    found = await answer(ask(engine, prompt, 2, prompt_logprobs=3))
    expected = log_softmax(plain.logits(prompt))
    scores = found.prompt_logprobs
    assert scores is not None
    assert (len(scores), scores[0]) == (300, None)
    for place, score in enumerate(scores[1:], 1):
        assert score is not None
        row = expected[place - 1]
        assert score.token_id == prompt[place]
        assert abs(score.logprob - row[prompt[place]]) <= ROUNDING
        np.testing.assert_allclose([v for _, v in score.top], np.sort(row)[::-1][:3], atol=ROUNDING)
        near = int(np.count_nonzero(np.abs(row - row[prompt[place]]) < 2 * ROUNDING))
        assert abs(score.rank - 1 - np.count_nonzero(row > row[prompt[place]])) <= near
        assert dict(score.top).get(score.token_id, score.logprob) == score.logprob


async def test_a_prompt_can_be_scored_without_an_answer(engine: GenerationEngine) -> None:
    for count in (1, 2, 40):
        prompt = (await text_ids(engine, STORY * 3))[:count]
        both = await answer(ask(engine, prompt, 1, prompt_logprobs=2, logprobs=1))
        alone = await answer(ask(engine, prompt, 0, prompt_logprobs=2, logprobs=1))
        assert alone == Answer(
            text="", token_ids=[], prompt_logprobs=both.prompt_logprobs, finish_reason="length"
        )
        assert len(both.logprobs) == 1
    assert engine.running_rows == 0


async def test_a_prompt_is_scored_whatever_is_cached_of_it(engine: GenerationEngine) -> None:
    prompt = await text_ids(engine, STORY * 4)
    first = await answer(ask(engine, prompt, 0, prompt_logprobs=1, cache_scope="scores"))
    await answer(ask(engine, prompt, 1, cache_scope="scores"))
    again = await answer(ask(engine, prompt, 0, prompt_logprobs=1, cache_scope="scores"))
    assert again == first


async def test_a_scored_text_has_the_log_probabilities_of_a_chain_of_single_steps(
    engine: GenerationEngine,
) -> None:
    text = await text_ids(engine, STORY)
    scored = await answer(ask(engine, text, 0, prompt_logprobs=0))
    assert scored.prompt_logprobs is not None
    for place in range(1, len(text), 3):
        step = ask(engine, text[:place], 1, logprobs=0, enforced=(text[place],))
        score = scored.prompt_logprobs[place]
        assert score is not None
        assert abs((await answer(step)).logprobs[0].logprob - score.logprob) <= ROUNDING


def _difference(one: Answer, other: Answer, count: int) -> float:
    """The largest difference of two answers' log probabilities over ``count`` tokens, the best ones included."""
    pairs = zip(one.logprobs[:count], other.logprobs[:count], strict=True)
    differences = [0.0]
    for each, its in pairs:
        assert [token_id for token_id, _ in each.top] == [token_id for token_id, _ in its.top]
        differences.append(abs(each.logprob - its.logprob))
        differences += [abs(a - b) for (_, a), (_, b) in zip(each.top, its.top, strict=True)]
    return max(differences)
