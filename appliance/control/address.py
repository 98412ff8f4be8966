"""The control socket's address, also when the path is longer than the kernel takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# sun_path holds 108 bytes with the final NUL.
LONGEST_ADDRESS = 107


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Give an address for ``path`` that bind and connect accept while this context lasts."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
