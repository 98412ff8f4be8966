"""Ratios always say how many times better the service was, whichever way the figure points."""

from __future__ import annotations

import pytest

from tests.benchmarks.figures import OURS, Figure, alternate
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
