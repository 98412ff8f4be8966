"""What the builder tells its user: a progress bar on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A log line at least this often (seconds) while something long runs and nobody watches a bar.
LINE_INTERVAL = 10.0


def say(text: str) -> None:
    """Write one line for the user."""
    print(text, file=sys.stderr, flush=True)


def human_size(size: float) -> str:
    """Return a size in decimal units, such as ``154.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


@contextmanager
def byte_progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` bytes are done; the block calls the yielded function with each increment."""
    if sys.stderr.isatty():
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, desc=label, unit="B", unit_scale=True, leave=True) as bar:

            def update(count: int) -> None:
                bar.update(count)

            yield update
        return
    done, last = 0, time.monotonic()
    say(f"{label}: {human_size(total) if total else 'size unknown'}")

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > LINE_INTERVAL:
            last = time.monotonic()
            say(f"{label}: {human_size(done)}{f' of {human_size(total)}' if total else ''}")

    yield advance
