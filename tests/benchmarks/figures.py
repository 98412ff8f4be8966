"""What a benchmark yields: paired samples of the service and one peer, and their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

OURS = "ours"
Side = TypeVar("Side")
# Measures one round, each side in its turn on the same input: side -> figure's name -> value. The round's
# number makes its input another one; 0 is the warm-up.
Round = Callable[[int], Mapping[str, Mapping[str, float]]]


# OpenMP's threads spin for 0.2 s after their last work: the other side must not pay for that.
SETTLE_SECONDS = 0.4
# After this time a figure gets no round more, if it has its least number.
BUDGET_SECONDS = 35.0
LEAST_ROUNDS = 3


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that both sides yield: what it is called, its unit, and which way is better."""

    name: str
    unit: str
    higher_is_better: bool
    # How many digits of an absolute value mean anything.
    digits: int = 1


class Wanted(msgspec.Struct, frozen=True):
    """The least advantage that will do, and the one hoped for when that is more."""

    floor: float
    aim: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Samples of one figure, taken in turns: ``ours[i]`` and ``theirs[i]`` belong to the same round.

    ``service`` says which of our own sides it is, where there are several.
    """

    figure: Figure
    service: str = OURS
    peer: str
    ours: list[float]
    theirs: list[float]
    wanted: Wanted | None = None

    @property
    def advantages(self) -> list[float]:
        """How many times better the service was, round by round; below 1 the peer was better."""
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.figure.higher_is_better:
            return [mine / other for mine, other in pairs]
        return [other / mine for mine, other in pairs]

    @property
    def advantage(self) -> float:
        """The median of ``advantages``."""
        return statistics.median(self.advantages)

    @property
    def reached(self) -> bool:
        """Whether the advantage, as the report shows it, is at least the floor."""
        return self.wanted is None or round(self.advantage, 2) >= self.wanted.floor


def in_turns(sides: Mapping[str, Callable[[], Side]], first: int = 0) -> dict[str, Side]:
    """Call each side's function alone on a quiet machine; return what they returned.

    The turn goes round from the side in place ``first`` (modulo their number).
    """
    found: dict[str, Side] = {}
    names = list(sides)
    start = first % len(names)
    for name in names[start:] + names[:start]:
        time.sleep(SETTLE_SECONDS)
        found[name] = sides[name]()
    return found


def alternate(
    figures: Sequence[Figure],
    measure: Round,
    rounds: int,
    say: Callable[[str], None],
    *,
    services: Sequence[str] = (OURS,),
    warm_up: bool = True,
) -> list[Comparison]:
    """Measure a round that is thrown away and up to ``rounds`` that count; compare our sides with every other one.

    On a slow machine ``LEAST_ROUNDS`` are enough, so that the whole bench ends in minutes there too.
    """
    if warm_up:
        measure(0)
    measured: list[Mapping[str, Mapping[str, float]]] = []
    started = time.monotonic()
    while len(measured) < rounds:
        measured.append(measure(len(measured) + 1))
        if len(measured) >= LEAST_ROUNDS and time.monotonic() - started > BUDGET_SECONDS:
            break
    found = [
        Comparison(
            figure=figure,
            service=service,
            peer=peer,
            ours=[values[service][figure.name] for values in measured],
            theirs=[values[peer][figure.name] for values in measured],
        )
        for service in services
        for figure in figures
        for peer in measured[0]
        if peer not in services and figure.name in measured[0][peer]
    ]
    for comparison in found:
        side = "" if comparison.service == OURS else f"{comparison.service}, "
        say(f"  {side}{comparison.figure.name}: {comparison.advantage:.2f} x {comparison.peer}")
    return found
