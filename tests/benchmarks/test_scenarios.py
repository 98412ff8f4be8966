"""The table's demands name figures that are measured, and a round asks every side for the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.benchmarks import generation_costs
from tests.benchmarks.completions import Side, Stream
from tests.benchmarks.generation_scenarios import (
    BOUNDS,
    DEEP_CONTEXT,
    MANY,
    MEMORY_MANY,
    MEMORY_ONE,
    ONE,
    SHARED,
    SLOT_CONTEXT,
    SLOTS,
    WANTED,
    OneStream,
    SharedPrefix,
    measuring,
    speed,
)

MEASURED = {figure.name for scenario in (*MANY, *ONE) for figure in scenario.figures} | {
    MEMORY_MANY.name,
    MEMORY_ONE.name,
}


class FakeSide(Side):
    """Answers after a fixed time and notes what it was asked for."""

    asked: list[tuple[int, int, bool]]

    async def complete(self, prompt: Any, tokens: int, *, cached: bool = False, **_: Any) -> Stream:
        self.asked.append((len(prompt), tokens, cached))
        return Stream(0.5, 1.5, tokens)


def fake_side() -> FakeSide:
    side = FakeSide("http://127.0.0.1:1", "m")
    object.__setattr__(side, "asked", [])
    return side


class Numbers:
    """Prompts without a tokenizer."""

    def ids(self, seed: str, tokens: int) -> list[int]:
        return [hash(seed) % 1000] * tokens


@pytest.mark.parametrize("profile", WANTED)
def test_what_is_wanted_names_figures_that_are_measured(profile: str) -> None:
    assert set(WANTED[profile]) <= MEASURED
    assert all(wanted.aim is None or wanted.aim > wanted.floor for wanted in WANTED[profile].values())


def test_reasons_name_profiles_and_figures_that_are_measured() -> None:
    own = set(generation_costs.WANTED)
    assert all(profile in WANTED and name in MEASURED | own for profile, name in BOUNDS)


def test_the_slots_hold_every_scenario() -> None:
    assert max(scenario.streams for scenario in MANY) <= SLOTS
    assert all(scenario.context <= SLOT_CONTEXT for scenario in MANY)
    assert all(scenario.context <= DEEP_CONTEXT for scenario in ONE)


def test_one_stream_yields_prefill_wait_and_decode() -> None:
    scenario = OneStream(100, 11, prefill=speed("p"), decode=speed("d"))
    side = fake_side()
    assert asyncio.run(scenario.run(side, [[1] * 100])) == {"p": 200.0, "d": 10.0}
    assert side.asked == [(100, 11, False)]


def test_the_shared_prefix_may_be_cached_and_only_the_second_request_counts() -> None:
    side = fake_side()
    values = asyncio.run(SharedPrefix(10, 3, 4, SHARED).run(side, [[1] * 10, [2] * 3]))
    assert side.asked == [(10, 4, True), (13, 4, True)]
    assert values == {SHARED.name: 500.0}


def test_every_side_of_a_round_gets_the_same_and_each_round_begins_with_another_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.benchmarks.figures.SETTLE_SECONDS", 0)
    scenario = OneStream(5, 3, decode=speed("d"))
    sides = {"a": fake_side(), "b": fake_side()}
    measure = measuring(scenario, sides, Numbers())  # type: ignore[arg-type]
    assert [next(iter(measure(number))) for number in range(3)] == ["a", "b", "a"]
    assert sides["a"].asked == sides["b"].asked == [(5, 3, False)] * 3


def test_the_schema_has_twenty_fields_that_all_must_be_there() -> None:
    schema = generation_costs.schema()
    assert len(schema["properties"]) == len(schema["required"]) == 20
