"""Beam search: the hypotheses of a slow one, their rows never mixed up, and its end in every way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.contract import Answer, Beams, Logits, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.scheduling.model import DecoderModel
from appliance.packs.manifest import Decoder, Manifest
from tests.engines.generation.conftest import (
    Plain,
    answer,
    ask,
    log_softmax,
    opened,
    request,
    text_ids,
    until,
)

STORY = "Once upon a time, in a small village by the sea, there lived an old fisherman who"
FACTS = "The seven colours of the rainbow are red, orange, yellow,"
APPLES = "9 apples and 9 apples are"
CODE = "def add(a, b):\n    return"


async def searched(
    engine: GenerationEngine,
    text: str,
    max_tokens: int,
    width: int,
    rules: dict[str, Any] | None = None,
    **fields: Any,
) -> list[Answer]:
    prompt = await text_ids(engine, text)
    beams = Beams(width=width, **(rules or {}))
    return await engine.search(request(prompt, max_tokens, **fields), beams).answers()


def score(answer: Answer, prompt: int, eos: list[int], penalty: float = 1.0) -> float:
    length = prompt + len(answer.token_ids) - (answer.token_ids[-1] in eos)
    return float(answer.cumulative_logprob / length**penalty)


@pytest.mark.parametrize(
    ("text", "width", "penalty", "rule"),
    [
        (STORY, 1, 1.0, False),
        (STORY, 3, 1.0, False),
        (APPLES, 3, 1.0, False),
        (APPLES, 3, 0.0, True),
        (APPLES, 4, 2.0, "never"),
    ],
    ids=str,
)
async def test_the_hypotheses_are_those_of_a_slow_search(
    engine: GenerationEngine,
    plain: Plain,
    decoder: Decoder,
    text: str,
    width: int,
    penalty: float,
    rule: Any,
) -> None:
    count, eos = 5, decoder.eos_token_ids
    prompt = await text_ids(engine, text)
    rules = {"length_penalty": penalty, "early_stopping": rule}
    found = await searched(engine, text, count, width, rules)

    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []

    def worth(total: float, tokens: int) -> float:
        return float(total / (len(prompt) + tokens) ** penalty)

    while running:
        grown: list[tuple[float, list[int]]] = []
        for total, tokens in running:
            append = plain.steps(len(prompt) + count)
            logits = append(prompt, [len(prompt) - 1])
            for token_id in tokens:
                logits = append([token_id], [0])
            values = log_softmax(logits[0])
            best = np.argsort(-values, kind="stable")[: 2 * width].tolist()
            grown += [(total + values[each], [*tokens, each]) for each in best]
        grown = sorted(grown, key=lambda each: -each[0])[: 2 * width]
        ended = [each for each in grown if each[1][-1] in eos or len(each[1]) == count]
        finished += [(worth(total, len(tokens) - (tokens[-1] in eos)), tokens) for total, tokens in ended]
        finished = sorted(finished, key=lambda each: -each[0])[:width]
        running = [each for each in grown if each not in ended][:width]
        if running and len(finished) == width:
            length = count if rule == "never" and penalty > 0 else len(running[0][1])
            if rule is True or worth(running[0][0], length) <= finished[-1][0]:
                break
    assert [each.token_ids for each in found] == [tokens for _, tokens in finished]
    scores = [score(each, len(prompt), eos, penalty) for each in found]
    np.testing.assert_allclose(scores, [value for value, _ in finished], atol=1e-3)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("width", [2, 20])
async def test_every_hypothesis_has_the_log_probabilities_of_its_own_tokens(
    engine: GenerationEngine, width: int
) -> None:
    """Those of an answer that is enforced: so no row was mixed up with another, wider than a batch too."""
    found = await searched(engine, STORY, 7, width, logprobs=2)
    assert len(found) == len({tuple(each.token_ids) for each in found}) == width
    prompt = await text_ids(engine, STORY)
    for each in (found[0], found[1], found[-1]):
        enforced = tuple(each.token_ids)
        replayed = await answer(ask(engine, prompt, 7, logprobs=2, enforced=enforced))
        assert replayed.logprobs == each.logprobs
        assert each.cumulative_logprob == pytest.approx(sum(one.logprob for one in each.logprobs))
        assert each.text == engine.decode(each.token_ids)
    assert engine.running_rows == 0


@pytest.mark.parametrize("text", [STORY, FACTS, APPLES, CODE])
async def test_the_best_is_no_worse_than_the_greedy_answer(
    engine: GenerationEngine, decoder: Decoder, text: str
) -> None:
    greedy = await answer(ask(engine, await text_ids(engine, text), 10, logprobs=0))
    for width in (1, 4):
        found = await searched(engine, text, 10, width)
        prompt = len(await text_ids(engine, text))
        best = score(found[0], prompt, decoder.eos_token_ids)
        assert best >= score(greedy, prompt, decoder.eos_token_ids) - 1e-9
        assert len(found) == width


async def test_the_same_search_gives_the_same_whoever_else_asks(engine: GenerationEngine) -> None:
    alone = await searched(engine, STORY, 8, 5, logprobs=1)
    prompt = await text_ids(engine, STORY)
    expected = await answer(ask(engine, prompt, 12, sampling=Sampling(seed=1), logprobs=1))
    streams = [ask(engine, prompt, 12, sampling=Sampling(seed=1), logprobs=1) for _ in range(3)]
    together = await asyncio.gather(
        searched(engine, STORY, 8, 5, logprobs=1),
        searched(engine, STORY, 8, 5, logprobs=1, cache_scope="another's"),
        searched(engine, FACTS, 8, 20),
        *(answer(stream) for stream in streams),
    )
    assert together[0] == together[1] == alone
    assert list(together[3:]) == [expected] * 3
    assert (engine.running_rows, engine.queue_depth) == (0, 0)


async def test_a_prompt_that_is_cached_is_not_computed_again(engine: GenerationEngine) -> None:
    cold = await searched(engine, STORY * 4, 3, 3, cache_scope="beams")
    prompt = await text_ids(engine, STORY * 4)
    before = engine.prompt_tokens, engine.reused_prompt_tokens
    assert await searched(engine, STORY * 4, 3, 3, cache_scope="beams") == cold
    assert engine.prompt_tokens - before[0] == len(prompt)
    assert engine.reused_prompt_tokens - before[1] == len(prompt) - 2


async def test_an_early_end_takes_the_first_that_ended(engine: GenerationEngine) -> None:
    rules: list[Any] = [True, False, "never"]
    early, usual, late = [await searched(engine, APPLES, 12, 3, {"early_stopping": rule}) for rule in rules]
    prompt = len(await text_ids(engine, APPLES))
    best = [score(each[0], prompt, [0, 2]) for each in (early, usual, late)]
    assert best[0] <= best[1] <= best[2]
    lengths = [max(len(each.token_ids) for each in found) for found in (early, late)]
    assert lengths[0] <= lengths[1]


async def test_the_length_penalty_favours_long_or_short_answers(engine: GenerationEngine) -> None:
    rules = {"early_stopping": "never"}
    short = await searched(engine, APPLES, 12, 3, {**rules, "length_penalty": -2.0})
    long = await searched(engine, APPLES, 12, 3, {**rules, "length_penalty": 6.0})
    assert len(short[0].token_ids) < len(long[0].token_ids)
    assert long[0].finish_reason == "length"


async def test_stops_end_hypotheses(engine: GenerationEngine, decoder: Decoder) -> None:
    free = await searched(engine, STORY, 8, 3)
    stop = free[0].text[3:6]
    found = await searched(engine, STORY, 8, 3, stop=(stop,))
    assert all(stop not in each.text for each in found)
    ended = [each for each in found if each.stop_reason == stop]
    assert ended
    assert all(stop in engine.decode(each.token_ids) for each in ended)
    shown = await searched(engine, STORY, 8, 3, stop=(stop,), include_stop=True)
    assert [each.text.endswith(stop) for each in shown] == [each.stop_reason == stop for each in shown]
    token_id = free[0].token_ids[2]
    by_id = await searched(engine, STORY, 8, 3, stop_token_ids=frozenset({token_id}))
    assert any((each.finish_reason, each.stop_reason) == ("stop", token_id) for each in by_id)
    assert all(token_id not in each.token_ids[:-1] for each in by_id)


async def test_no_hypothesis_ends_below_the_minimum(engine: GenerationEngine, decoder: Decoder) -> None:
    ended = await searched(engine, APPLES, 9, 3)
    assert min(len(each.token_ids) for each in ended) < 6
    longer = await searched(engine, APPLES, 9, 3, min_tokens=6)
    for each in longer:
        assert not set(each.token_ids[:6]) & set(decoder.eos_token_ids)
        assert len(each.token_ids) >= 6
    ignored = await searched(engine, APPLES, 9, 3, ignore_eos=True)
    assert {(len(each.token_ids), each.finish_reason) for each in ignored} == {(9, "length")}


async def test_penalties_follow_each_hypothesis(engine: GenerationEngine) -> None:
    sampling = Sampling(
        temperature=0, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias=((28, -9.0),)
    )
    found = await searched(engine, STORY, 6, 3, sampling=sampling, logprobs=0)
    for each in found:
        replay = ask(
            engine,
            await text_ids(engine, STORY),
            6,
            sampling=sampling,
            enforced=tuple(each.token_ids),
            logprobs=0,
        )
        assert (await answer(replay)).logprobs == each.logprobs


async def test_the_prompt_is_scored_on_demand(engine: GenerationEngine) -> None:
    found = await searched(engine, STORY, 3, 2, prompt_logprobs=1)
    alone = await answer(ask(engine, await text_ids(engine, STORY), 0, prompt_logprobs=1))
    assert [each.prompt_logprobs for each in found] == [alone.prompt_logprobs] * 2


class _Path:
    """A constraint that allows some tokens at each step and then the end of the sequence."""

    def __init__(self, steps: list[list[int]], eos: int, place: int = 0) -> None:
        self._steps, self._eos, self._place = steps, eos, place

    def start(self) -> _Path:
        return self.copy()

    @property
    def finished(self) -> bool:
        return self._place >= len(self._steps)

    def mask(self, logits: Logits) -> None:
        allowed = [self._eos] if self.finished else self._steps[self._place]
        kept = logits[allowed]
        logits[:] = -np.inf
        logits[allowed] = kept

    def accept(self, token_id: int) -> None:
        assert token_id in (self._steps[self._place] if not self.finished else [self._eos])
        self._place += 1

    def copy(self) -> _Path:
        return _Path(self._steps, self._eos, self._place)


async def test_hypotheses_that_become_few_and_many_again_keep_their_rows(
    engine: GenerationEngine, decoder: Decoder
) -> None:
    words = await text_ids(engine, " a the one his her fish net boat sea old")
    steps = [words[:1], words[:5], words[5:6], words[:2], words[:6], words[2:4]]
    constraint = _Path(steps, decoder.eos_token_ids[0])
    # Only the end may follow the first word: at each step but the second those which end make room.
    ending = [[*step, decoder.eos_token_ids[0]] for step in steps]
    prompt = await text_ids(engine, STORY)
    for each, rules in (
        (constraint, {}),
        (_Path(ending, decoder.eos_token_ids[0]), {"early_stopping": "never"}),
    ):
        found = await searched(engine, STORY, 10, 4, rules, constraint=each, logprobs=1)
        assert 1 < len(found) <= 4
        for hypothesis in found:
            enforced = tuple(hypothesis.token_ids)
            replay = ask(engine, prompt, 10, constraint=each, enforced=enforced, logprobs=1)
            assert (await answer(replay)).logprobs == hypothesis.logprobs


async def test_others_do_not_wait_for_a_leader_that_rests(
    engine: GenerationEngine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await text_ids(engine, " a the one his")
    steps = [words] * 2 + [words[:1]] * 200
    monkeypatch.setattr(
        "appliance.engines.generation.scheduling.beam_search.BeamGroup._is_over", lambda *_: False
    )
    ids = await text_ids(engine, STORY * 2)
    search = engine.search(
        request(ids, 203, constraint=_Path(steps, decoder.eos_token_ids[0]), cache_scope="rest"),
        Beams(width=2),
    )
    waiting = asyncio.ensure_future(search.answers())
    await until(lambda: engine.running_rows == 2)
    await asyncio.sleep(0.3)
    for _ in range(3):
        await asyncio.wait_for(answer(ask(engine, ids, 2, cache_scope="rest")), 20)
    assert not waiting.done()
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_search_that_can_never_fit_is_refused(pack: Path, manifest: Manifest, cores: Cores) -> None:
    with opened(pack, manifest, cores, context_length=512, budget=1024) as engine:
        prompt = await text_ids(engine, STORY)
        # Beside the one that may grow to the whole context there is room for two of a block each.
        with pytest.raises(InputRefusedError, match="width 4 over") as refused:
            engine.search(request(prompt, 8), Beams(width=4))
        assert refused.value.status == 400
        assert len(await engine.search(request(prompt, 4), Beams(width=3)).answers()) == 3
        running = ask(engine, prompt, 300)
        await anext(running)
        search = asyncio.ensure_future(engine.search(request(prompt, 4), Beams(width=3)).answers())
        await asyncio.sleep(0.1)
        assert engine.queue_depth == 1  # it waits for memory, and for nothing else
        running.cancel()
        assert len(await search) == 3
    with pytest.raises(InputRefusedError):
        engine.search(request(prompt, 0, prompt_logprobs=1), Beams(width=2))


@pytest.mark.parametrize("width", [3, 20])
async def test_cancelling_frees_all_rows_within_a_step(engine: GenerationEngine, width: int) -> None:
    prompt = await text_ids(engine, STORY)
    search = engine.search(request(prompt, 500, ignore_eos=True), Beams(width=width))
    task = asyncio.create_task(search.answers())
    await until(lambda: engine.running_rows == width)
    await asyncio.sleep(0.1)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    short = await answer(ask(engine, prompt, 2))
    assert len(short.token_ids) == 2
    assert (engine.running_rows, engine.queue_depth) == (0, 0)


@pytest.mark.parametrize("broken", ["prefill", "decode"])
async def test_a_failing_model_fails_the_search_alone(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def nothing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    def no_number(self: DecoderModel, *args: Any, **options: Any) -> Any:
        return whole(self, *args, **options) * np.float32(np.nan)

    whole = getattr(DecoderModel, broken)
    for fault in (nothing, no_number):
        with monkeypatch.context() as patch:
            patch.setattr(DecoderModel, broken, fault)
            with pytest.raises(EngineError) as failed:
                await searched(engine, STORY, 4, 3)
            assert failed.value.status == 500
        assert engine.running_rows == 0
    assert len(await searched(engine, STORY, 4, 3)) == 3
