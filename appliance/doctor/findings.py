"""What a check found."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check's outcome: ``detail`` says what is, ``remedy`` what to do (empty when ``level`` is ok).

    An error means that the service cannot work here, a warning that it will work badly or that the
    check could not look.
    """

    check: str
    level: Level
    title: str
    detail: str
    remedy: str = ""


def gib(size: int) -> str:
    """Return a number of bytes in GiB, as the checks print it."""
    return f"{size / (1 << 30):.1f} GiB"
