"""RESULTS.md: what was measured, on what, with what, and how it came out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.benchmarks.figures import Comparison
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


def report(
    sections: Sequence[Section], *, rounds: str, date: str, command: str, machine: str, own: str
) -> str:
    """Return the report as Markdown. ``own`` names the versions on our side."""
    versions = "; ".join([own, *(version for section in sections for version in section.versions)])
    parts = [HEAD.format(rounds=rounds, date=date, command=command, machine=machine, versions=versions)]
    parts += [_section(section) for section in sections]
    parts.append(_slower([comparison for section in sections for comparison in section.comparisons]))
    return "\n".join(parts)


def _section(section: Section) -> str:
    rows = "".join(_row(comparison) for comparison in section.comparisons)
    memory = "; ".join(f"{name} {value:.0f} MB" for name, value in section.memory.items())
    checks = "".join(f"- {line}\n" for line in section.checks)
    return f"## {section.title}\n\n{section.method}\n\n{TABLE}{rows}\n{checks}- Peak resident memory: {memory}.\n"


def _row(comparison: Comparison) -> str:
    figure, ratios = comparison.figure, comparison.advantages
    ours, theirs = (
        f"{statistics.median(values):.{figure.digits}f}" for values in (comparison.ours, comparison.theirs)
    )
    return (
        f"| {figure.name} | {comparison.peer} | **{comparison.advantage:.2f}** | "
        f"{min(ratios):.2f}–{max(ratios):.2f} | {ours} | {theirs} | {figure.unit} |\n"
    )


def _slower(comparisons: Sequence[Comparison]) -> str:
    """Return the list of what the peers do better, worst first, so that nobody has to look for it."""
    worse = sorted((c for c in comparisons if c.advantage < 1), key=lambda c: c.advantage)
    lines = [f"- {c.figure.name}: {c.advantage:.2f} of {c.peer}\n" for c in worse]
    return "## Where a peer is better\n\n" + ("".join(lines) or "Nowhere in this run.\n")
