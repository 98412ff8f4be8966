"""How often the service has begun a start with a pack that is on trial, and did not live to tell.

A pack may end the whole service while it is loaded: too large for the memory, a fault in a library. The count is a file
of the store beside it, ``.attempts-NAME``; whoever comes to an end in good order, or to a decision, removes it.
"""

from __future__ import annotations

from pathlib import Path

from appliance.disk import write_whole

_ATTEMPTS = ".attempts-"


def begin(packs_dir: Path, name: str) -> int:
    """Count one more attempt, on disk when this returns; return how many there were before. Raises OSError."""
    place = packs_dir / f"{_ATTEMPTS}{name}"
    try:
        before = int(place.read_bytes())
    except (FileNotFoundError, ValueError):
        before = 0
    write_whole(place, b"%d" % (before + 1), 0o600)
    return before


def clear(packs_dir: Path, name: str = "*") -> None:
    """Forget the attempts with one pack, or with every one. Raises OSError."""
    for place in packs_dir.glob(f"{_ATTEMPTS}{name}"):
        place.unlink(missing_ok=True)
