"""Ratios always say how many times better the service was, whichever way the figure points."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.figures import OURS, Comparison, Figure, Wanted, alternate, in_turns
from tests.benchmarks.report import report
from tests.benchmarks.section import Section

SPEED = Figure(name="speed", unit="tokens/s", higher_is_better=True)
WAIT = Figure(name="wait", unit="ms", higher_is_better=False)


def rounds(number: int) -> dict[str, dict[str, float]]:
    # Round 0, the warm-up, would spoil every median if it were kept.
    if number == 0:
        return {OURS: {"speed": 1, "wait": 1}, "peer": {"speed": 1e9, "wait": 1e-9}}
    return {OURS: {"speed": 20.0 * number, "wait": 50.0}, "peer": {"speed": 10.0, "wait": 25.0 * number}}


def test_ratio_is_ours_over_theirs_for_speed_and_turned_round_for_time() -> None:
    speed, wait = alternate([SPEED, WAIT], rounds, 3, lambda _: None)
    assert speed.advantages == [2.0, 4.0, 6.0]
    assert speed.advantage == 4.0
    assert wait.advantages == [0.5, 1.0, 1.5]


def test_a_figure_that_a_peer_does_not_yield_is_left_out() -> None:
    def measure(number: int) -> dict[str, dict[str, float]]:
        return {OURS: {"speed": 1.0, "wait": 1.0}, "a": {"speed": 1.0}, "b": {"speed": 1.0, "wait": 1.0}}

    found = alternate([SPEED, WAIT], measure, 1, lambda _: None)
    assert [(c.figure.name, c.peer) for c in found] == [("speed", "a"), ("speed", "b"), ("wait", "b")]


@pytest.mark.parametrize(("number", "expected"), [(1, "- wait: 0.50 of peer"), (2, "Nowhere in this run")])
def test_the_report_names_what_is_slower(number: int, expected: str) -> None:
    comparisons = alternate([SPEED, WAIT], lambda _: rounds(number), 1, lambda _: None)
    section = Section(
        title="Part",
        method="How.",
        comparisons=comparisons,
        checks=["Same."],
        memory={"it": 12.3},
        versions=["x 1"],
    )
    text = report(
        [section], rounds="1", date="today", command="bench", machine="a machine", own="appliance 1"
    )
    assert expected in text
    assert "| speed | peer | **" in text
    assert "Peak resident memory: it 12 MB." in text


def test_each_of_our_sides_is_compared_with_each_peer() -> None:
    def measure(number: int) -> dict[str, dict[str, float]]:
        return {"fast": {"speed": 4.0}, "slow": {"speed": 2.0}, "a": {"speed": 1.0}, "b": {"speed": 2.0}}

    found = alternate([SPEED], measure, 1, lambda _: None, services=("fast", "slow"))
    assert [(c.service, c.peer, c.advantage) for c in found] == [
        ("fast", "a", 4.0),
        ("fast", "b", 2.0),
        ("slow", "a", 2.0),
        ("slow", "b", 1.0),
    ]


def test_turns_begin_with_another_side_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.figures.SETTLE_SECONDS", 0)
    sides = {name: lambda name=name: name for name in "abc"}
    assert [list(in_turns(sides, first)) for first in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def compared(advantage: float, wanted: Wanted | None) -> Comparison:
    return Comparison(
        figure=SPEED, service="exact", peer="peer", ours=[advantage], theirs=[1.0], wanted=wanted
    )


@pytest.mark.parametrize(("advantage", "reached"), [(1.3, True), (1.296, True), (1.29, False)])
def test_what_is_wanted_is_judged_as_it_is_shown(advantage: float, reached: bool) -> None:
    assert compared(advantage, Wanted(1.3)).reached is reached


def shown(comparison: Comparison, **fields: Any) -> str:
    section = Section(
        title="Part, exact",
        method="How.",
        comparisons=[comparison],
        checks=[],
        memory={},
        versions=[],
        **fields,
    )
    return report([section], rounds="1", date="today", command="bench", machine="a machine", own="own 1")


def test_the_report_shows_what_is_wanted_and_why_it_is_missed() -> None:
    text = shown(compared(0.5, Wanted(0.8, 1.0)), bounds={"speed": "The memory bus."})
    assert "| ≥ 0.80 (aim 1.00) | **no** |" in text
    assert "- Not reached: speed (0.50 of peer). The memory bus." in text
    assert "- speed (Part, exact): 0.50 of peer" in text


def test_the_report_does_not_explain_what_is_reached() -> None:
    text = shown(compared(0.9, Wanted(0.8)), bounds={"speed": "The memory bus."}, beside_itself=True)
    assert "| ≥ 0.80 | yes |" in text
    assert "The memory bus." not in text
    assert "Nowhere in this run." in text
