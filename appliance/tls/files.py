"""Files with keys: whole or not there, for their owner only, on disk before they are used."""

from __future__ import annotations

from pathlib import Path

from appliance.disk import read_beginning, write_whole
from appliance.tls.errors import TlsError

LONGEST_FILE = 1 << 20


def write_private(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path`` (mode 0600): after a crash the old or the new is there.

    Raises TlsError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, content, 0o600)
    except OSError as error:
        raise TlsError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path, what: str) -> bytes:
    """Return a file's content. Raises TlsError, which names ``what`` it is."""
    try:
        content = read_beginning(path, LONGEST_FILE + 1)
    except OSError as error:
        raise TlsError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(content) > LONGEST_FILE:
        raise TlsError(f"{what} {path} is too large")
    return content
