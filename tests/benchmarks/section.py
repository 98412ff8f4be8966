"""What each part of the bench hands to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.benchmarks.figures import Comparison
from tests.benchmarks.llama_cpp import WAYS
from tests.service import CHAT


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to run: threads of every engine, most rounds, a work folder, the peers' interpreter, a line's printer.

    ``warm_up`` says whether every figure begins with a round that does not count; ``chat_models`` are the
    recipes of the chat models to measure, and ``peers`` the ways to run llama.cpp.
    """

    threads: int
    rounds: int
    work: Path
    python: Path
    build_jobs: int
    say: Callable[[str], None]
    warm_up: bool = True
    chat_models: tuple[str, ...] = (CHAT,)
    peers: tuple[str, ...] = tuple(WAYS)


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
    # Why a figure is below what is wanted, by the figure's name.
    bounds: dict[str, str] = {}
    # Whether what stands for a peer is the service itself in another way.
    beside_itself: bool = False
    # A table of its own, as Markdown.
    table: str = ""
