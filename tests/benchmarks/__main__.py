"""``python -m tests.benchmarks``: measure and write RESULTS.md."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import appliance
from appliance.engines.cores import usable_cores
from tests.benchmarks import embeddings, gateway, generation, speech, start
from tests.benchmarks.environment import ENVIRONMENT, machine, peer_python
from tests.benchmarks.generation_scenarios import MEMORY_MANY
from tests.benchmarks.llama_cpp import WAYS, built_tools
from tests.benchmarks.report import report
from tests.benchmarks.section import Plan, Section
from tests.service import CHAT

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS: dict[str, Callable[[Plan], list[Section]]] = {
    "generation": generation.run,
    "embeddings": lambda plan: [embeddings.run(plan)],
    "speech": lambda plan: [speech.run(plan)],
    "gateway": gateway.run,
    "start": lambda plan: [start.run(plan)],
}
ROUNDS, QUICK_ROUNDS = 5, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for; return the exit code."""
    options = _parser().parse_args(arguments)
    # Ended from outside, the servers that were started must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    python = peer_python()
    if options.build_only:
        print(built_tools(ENVIRONMENT, options.jobs).description)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as work:
        plan = Plan(
            threads=options.threads,
            rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
            work=Path(work),
            python=python,
            build_jobs=options.jobs,
            say=_say,
            warm_up=not options.quick,
            chat_models=tuple(options.model or (CHAT,)),
            peers=tuple(options.peer or WAYS),
        )
        sections: list[Section] = []
        for name in options.only or SECTIONS:
            _say(f"{name} ...")
            sections += SECTIONS[name](plan)
    given = sys.argv[1:] if arguments is None else list(arguments)
    text = report(
        sections,
        rounds=_rounds(sections),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(["python -m tests.benchmarks", *given]) if given else "make bench",
        machine=machine(),
        own=(
            f"appliance {appliance.__version__}, onnxruntime {version('onnxruntime')}, "
            f"pywhispercpp {version('pywhispercpp')}"
        ),
    )
    options.output.write_text(text, "utf-8")
    _say(f"{options.output} written after {time.monotonic() - started:.0f} s")
    return 0


def _rounds(sections: Sequence[Section]) -> str:
    """Return how many rounds the figures had: one number, or the least and the most."""
    # Peak memory is read once.
    timed = (c for section in sections for c in section.comparisons if c.figure.unit != MEMORY_MANY.unit)
    counts = sorted({len(comparison.ours) for comparison in timed})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure against peers.")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one part (may be repeated)")
    parser.add_argument("--rounds", type=int, default=0, help="most rounds besides the warm-up")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, no warm-up")
    parser.add_argument("--model", action="append", help="recipe of a chat model (may be repeated)")
    parser.add_argument(
        "--peer", action="append", choices=WAYS, help="a way to run llama.cpp (may be repeated)"
    )
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), help="threads of every engine but speech"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--build-only", action="store_true", help="only build llama.cpp's tools")
    parser.add_argument("--jobs", type=int, default=0, help="compiler processes (default: one per core)")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
