"""RESULTS.md: what was measured, on what, with what, and how it came out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.benchmarks.figures import OURS, Comparison
from tests.benchmarks.section import Section

HEAD = """\
# Benchmark results

The service beside its peers, in one run, taking turns. The ratio says how many times better the service was
in the same round: 1.00 is a tie, **above 1 the service is better**, below 1 the peer is. Median of {rounds}
rounds, with the smallest and the largest. Absolute values depend on machine and moment: compare ratios.

- Date: {date}
- Command: `{command}`
- Machine: {machine}
- Versions: {versions}
"""
TABLE = """\
| figure | peer | ratio | min–max | the service | the peer | unit |
|---|---|---:|---:|---:|---:|---|
"""
WANTED_TABLE = """\
| figure | peer | ratio | wanted | reached | min–max | the service | the peer | unit |
|---|---|---:|---:|---|---:|---:|---:|---|
"""


def report(
    sections: Sequence[Section], *, rounds: str, date: str, command: str, machine: str, own: str
) -> str:
    """Return the report as Markdown. ``own`` names the versions on our side."""
    named = dict.fromkeys([own, *(version for section in sections for version in section.versions)])
    versions = "; ".join(named)
    parts = [HEAD.format(rounds=rounds, date=date, command=command, machine=machine, versions=versions)]
    parts += [_section(section) for section in sections]
    parts.append(_slower(sections))
    return "\n".join(parts)


def _section(section: Section) -> str:
    wanted = any(comparison.wanted is not None for comparison in section.comparisons)
    rows = "".join(_row(comparison, wanted) for comparison in section.comparisons)
    table = f"{WANTED_TABLE if wanted else TABLE}{rows}\n" if rows else ""
    if section.table:
        table += f"{section.table}\n"
    lines = [*section.checks, *_missed(section)]
    if section.memory:
        memory = "; ".join(f"{name} {value:.0f} MB" for name, value in section.memory.items())
        lines.append(f"Peak resident memory: {memory}.")
    notes = "".join(f"- {line}\n" for line in lines)
    return f"## {section.title}\n\n{section.method}\n\n{table}{notes}"


def _row(comparison: Comparison, wanted: bool) -> str:
    figure, ratios = comparison.figure, comparison.advantages
    ours, theirs = (
        f"{statistics.median(values):.{figure.digits}f}" for values in (comparison.ours, comparison.theirs)
    )
    judgement = _judgement(comparison) if wanted else ""
    return (
        f"| {figure.name} | {comparison.peer} | **{comparison.advantage:.2f}** |{judgement} "
        f"{min(ratios):.2f}–{max(ratios):.2f} | {ours} | {theirs} | {figure.unit} |\n"
    )


def _judgement(comparison: Comparison) -> str:
    """Return the cells that say what is wanted and whether it is reached."""
    if comparison.wanted is None:
        return " | |"
    aim = f" (aim {comparison.wanted.aim:.2f})" if comparison.wanted.aim is not None else ""
    return f" ≥ {comparison.wanted.floor:.2f}{aim} | {'yes' if comparison.reached else '**no**'} |"


def _missed(section: Section) -> list[str]:
    """Return a line for every figure that is below what is wanted, with what bounds it."""
    missed: dict[str, list[Comparison]] = {}
    for comparison in section.comparisons:
        if not comparison.reached:
            missed.setdefault(comparison.figure.name, []).append(comparison)
    return [
        f"Not reached: {name} ("
        + "; ".join(f"{c.advantage:.2f} of {c.peer}" for c in comparisons)
        + f"). {section.bounds.get(name, '')}".rstrip()
        for name, comparisons in missed.items()
    ]


def _slower(sections: Sequence[Section]) -> str:
    """Return the list of what the peers do better, worst first, so that nobody has to look for it."""
    worse = sorted(
        (
            (comparison, section)
            for section in sections
            for comparison in section.comparisons
            if comparison.advantage < 1 and not section.beside_itself
        ),
        key=lambda pair: pair[0].advantage,
    )
    lines = [
        f"- {comparison.figure.name}{_of(comparison, section)}: {comparison.advantage:.2f} of {comparison.peer}\n"
        for comparison, section in worse
    ]
    return "## Where a peer is better\n\n" + ("".join(lines) or "Nowhere in this run.\n")


def _of(comparison: Comparison, section: Section) -> str:
    """Return in which section the figure stands, where others have one of the same name."""
    return "" if comparison.service == OURS else f" ({section.title})"
