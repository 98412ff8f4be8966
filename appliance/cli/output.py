"""What commands have in common in what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from appliance.packs.meter import Progress

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def in_words(size: int) -> str:
    """Return a number of bytes as people read it, such as 134.2 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def printable(text: str) -> str:
    """Return ``text`` without control characters: the words of a pack or a user must not steer the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def expiry(expires_at: int | None) -> str:
    """Return the day until which a user or a key is good; ``expires_at`` is UTC milliseconds."""
    if expires_at is None:
        return "never expires"
    return f"until {datetime.fromtimestamp(expires_at / 1000, UTC):%Y-%m-%d}"


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Progress]:
    """Give a progress callback that draws a bar on a terminal's standard error, from the first total on."""
    bar: Any = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if quiet or total <= 0:
            return
        if bar is not None and done < bar.pos:  # the next piece of work begins
            bar.__exit__(None, None, None)
            bar = None
        if bar is None:
            bar = click.progressbar(length=total, label=label, file=sys.stderr, show_pos=False)
            bar.__enter__()
        bar.update(done - bar.pos)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def print_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
