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
from tests.benchmarks import embeddings, generation, speech
from tests.benchmarks.environment import ENVIRONMENT, machine, peer_python
from tests.benchmarks.llama_cpp import built_tools
from tests.benchmarks.report import report
from tests.benchmarks.section import Plan, Section

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS: dict[str, Callable[[Plan], Section]] = {
    "generation": generation.run,
    "embeddings": embeddings.run,
    "speech": speech.run,
}
ROUNDS = 5


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
            rounds=options.rounds,
            work=Path(work),
            python=python,
            build_jobs=options.jobs,
            say=_say,
        )
        sections = []
        for name in options.only or SECTIONS:
            _say(f"{name} ...")
            sections.append(SECTIONS[name](plan))
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
    counts = sorted({len(comparison.ours) for section in sections for comparison in section.comparisons})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure against peers.")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one part (may be repeated)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="most rounds besides the warm-up")
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
