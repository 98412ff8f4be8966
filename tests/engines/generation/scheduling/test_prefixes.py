"""How much of a prompt another one has computed already."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.engines.generation import tuning
from appliance.engines.generation.contract import Answer
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.scheduling.prefixes import (
    LEAST_COMPUTED_TOKENS,
    LEAST_SHARED_TOKENS,
    common_tokens,
    shared_tokens,
)
from appliance.packs.manifest import Decoder, Manifest
from tests.engines.generation.conftest import answer, ask, opened, request, text_ids

BEGINNING = "Once upon a time, in a small village by the sea, there lived an old fisherman. " * 12
OTHER = "The seven colours of the rainbow are red, orange, yellow, green, blue, indigo. " * 12
# Around the least that is shared, and around the kernel's tiles; the others were tried once, and are as good.
SHARED = [1, 15, 16, 63, 64, 127, 128, 129, 130, 200]

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


@pytest.mark.parametrize("shared", SHARED)
async def test_a_shared_beginning_changes_no_bit(engine: GenerationEngine, shared: int) -> None:
    start, other = await text_ids(engine, BEGINNING), await text_ids(engine, OTHER)
    prompt = start[:shared] + other[: 2 if shared % 2 else 30]
    cold = await reusing(engine, 0, prompt, f"cold {shared}")
    await answer(ask(engine, start[:shared] + other[50:60], 2, logprobs=3, cache_scope=f"warm {shared}"))
    expected = shared if shared >= LEAST_SHARED_TOKENS else 0
    assert await reusing(engine, expected, prompt, f"warm {shared}") == cold
    # The whole prompt again: all of it but two tokens.
    again = len(prompt) - 2 if len(prompt) - 2 >= LEAST_SHARED_TOKENS else 0
    assert await reusing(engine, again, prompt, f"warm {shared}") == cold


@pytest.mark.parametrize("chunk", [64, 128, 256])
async def test_where_prompts_are_cut_changes_no_bit(
    pack: Path,
    manifest: Manifest,
    cores: Cores,
    monkeypatch: pytest.MonkeyPatch,
    engine: GenerationEngine,
    decoder: Decoder,
    chunk: int,
) -> None:
    start, other = await text_ids(engine, BEGINNING), await text_ids(engine, OTHER)
    prompts = [
        start[:200],
        [*start[:101], *other[:156]],
        [*start[:150], *other[:2]],
    ]  # 257: one more than a chunk
    expected = [await reusing(engine, 0, prompt, f"{chunk} {len(prompt)}") for prompt in prompts]
    chosen = tuning.Tuning(profile="exact", graph=decoder.graph, threads=cores.threads, chunk_tokens=chunk)
    monkeypatch.setattr("appliance.engines.generation.engine.tuned", lambda *_: chosen)
    with opened(pack, manifest, cores, context_length=1024) as other_engine:
        found = [
            await reusing(other_engine, reused, prompt, "same")
            for reused, prompt in zip((0, 101, 150), prompts, strict=True)
        ]
    assert found == expected


async def test_prompts_are_shared_in_the_throughput_profile(
    pack: Path, manifest: Manifest, cores: Cores, engine: GenerationEngine
) -> None:
    start, other = await text_ids(engine, BEGINNING), await text_ids(engine, OTHER)
    prompt = start[:129] + other[:30]
    with opened(pack, manifest, cores, context_length=512, profile="throughput") as fast:
        cold = await reusing(fast, 0, prompt, "cold")
        await answer(ask(fast, start[:129] + other[50:60], 1, cache_scope="warm"))
        assert await reusing(fast, 129, prompt, "warm") == cold
    assert cold != await reusing(engine, 0, prompt, "exact")  # another graph's numbers


async def test_a_prompt_is_shared_while_its_sequence_goes_on(engine: GenerationEngine) -> None:
    prompt = (await text_ids(engine, BEGINNING))[:90]
    cold = await reusing(engine, 0, prompt, "cold")
    running = ask(engine, prompt[:80], 400, ignore_eos=True, logprobs=0, cache_scope="live")
    await anext(running)
    assert await reusing(engine, 80, prompt, "live") == cold
    running.cancel()


async def test_nothing_is_shared_with_strangers_nor_from_what_was_produced(engine: GenerationEngine) -> None:
    prompt = (await text_ids(engine, BEGINNING))[:40]
    first = await answer(ask(engine, prompt, 24, logprobs=3, cache_scope="mine"))
    longer = prompt + first.token_ids + prompt[:3]
    cold = await reusing(engine, 0, longer, "another's")
    assert await reusing(engine, 40, longer, "mine") == cold  # the prompt, not the answer


async def test_many_sequences_of_one_prompt_compute_it_once(engine: GenerationEngine) -> None:
    prompt = (await text_ids(engine, BEGINNING))[:150]
    before = engine.prompt_tokens, engine.reused_prompt_tokens
    answers = await asyncio.gather(
        *map(answer, engine.submit_all([request(prompt, 3, cache_scope="many")] * 20))
    )
    assert len({each.text for each in answers}) == 1
    assert engine.prompt_tokens - before[0] == 20 * 150
    assert engine.reused_prompt_tokens - before[1] == 19 * 148
    assert engine.running_rows == 0


async def test_of_a_prompt_that_is_given_up_another_goes_on(engine: GenerationEngine) -> None:
    prompt = await text_ids(engine, BEGINNING * 3)
    expected = await answer(ask(engine, prompt, 2, cache_scope="given up, alone"))
    before = engine.reused_prompt_tokens
    first, *others = engine.submit_all([request(prompt, 2, cache_scope="given up")] * 4)
    await asyncio.sleep(0.1)
    first.cancel()
    assert await asyncio.gather(*map(answer, others)) == [expected] * 3
    assert engine.reused_prompt_tokens - before >= 2 * (len(prompt) - 2)


async def test_the_prefix_cache_can_be_off(pack: Path, manifest: Manifest, cores: Cores) -> None:
    with opened(pack, manifest, cores, context_length=512, prefix_cache_bytes=0) as engine:
        prompt = (await text_ids(engine, BEGINNING))[:60]
        first = await reusing(engine, 0, prompt, "a")
        assert engine.kv_cache_bytes == 0
        assert await reusing(engine, 0, prompt, "a") == first


async def reusing(engine: GenerationEngine, reused: int, prompt: list[int], scope: str) -> Answer:
    """The answer to a prompt of which that many tokens are in the cache."""
    before = engine.reused_prompt_tokens
    fields: dict[str, Any] = {"logprobs": 3, "cache_scope": scope}
    found = await answer(ask(engine, prompt, 3, **fields))
    assert engine.reused_prompt_tokens - before == reused
    return found
