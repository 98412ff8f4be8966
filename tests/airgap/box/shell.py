"""Programs of this machine that the proof runs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

Output = subprocess.CompletedProcess[str]


class BoxError(Exception):
    """A step of the proof did not come out as it must; the text says which and shows what was said."""


def run(*command: str, timeout: float = 600, check: bool = True, given: str | None = None) -> Output:
    """Run ``command`` to its end (at most ``timeout`` seconds); raises BoxError with its output when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, input=given
        )
    except subprocess.TimeoutExpired as error:
        raise BoxError(f"{show(command)}: no end after {timeout:.0f} s\n{error.stdout!r}") from error
    if check and done.returncode:
        raise BoxError(f"{show(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def show(command: Sequence[str]) -> str:
    """Return ``command`` as one short line."""
    line = " ".join(command)
    return line if len(line) <= 200 else f"{line[:197]}..."
