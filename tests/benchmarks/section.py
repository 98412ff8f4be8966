"""What each part of the bench hands to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.benchmarks.figures import Comparison


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to run: threads of every engine, most rounds, a work folder, the peers' interpreter, a line's printer."""

    threads: int
    rounds: int
    work: Path
    python: Path
    build_jobs: int
    say: Callable[[str], None]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the report: its title, how it was done, the figures, and the versions it used."""

    title: str
    method: str
    comparisons: list[Comparison]
    # Lines below the table: what shows that both sides did the same work.
    checks: list[str]
    # Peak resident memory in MB by process, in words.
    memory: dict[str, float]
    versions: list[str]
