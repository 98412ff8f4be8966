"""A frozen tree as one thing: its normal form, its hash, and what differs between two."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

EXECUTABLE, PLAIN, FOLDER = 0o755, 0o644, 0o755


def normalise(tree: Path, epoch: int) -> None:
    """Give every file and folder its mode (executable or not) and the time ``epoch``, seconds."""
    for path in [*sorted(tree.rglob("*"), reverse=True), tree]:  # contents before their folder
        if not path.is_symlink():
            executable = path.is_file() and path.stat().st_mode & stat.S_IXUSR
            path.chmod(FOLDER if path.is_dir() else EXECUTABLE if executable else PLAIN)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def size(tree: Path) -> int:
    """Return the bytes of all files, links as the text that they hold."""
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_symlink() or path.is_file())


def entries(tree: Path) -> Iterator[tuple[str, str]]:
    """Yield every path of the tree, in order, with its mode, time and content's SHA-256."""
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = f"-> {path.readlink()}"
        elif path.is_dir():
            content = "folder"
        else:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        mode = 0 if path.is_symlink() else stat.S_IMODE(status.st_mode)
        yield str(path.relative_to(tree)), f"{mode:04o} {int(status.st_mtime)} {content}"


def tree_hash(tree: Path) -> str:
    """Return the SHA-256 over all of ``entries``."""
    digest = hashlib.sha256()
    for name, content in entries(tree):
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def differences(one: Path, other: Path) -> list[str]:
    """Return the paths that are not the same in both trees."""
    left, right = dict(entries(one)), dict(entries(other))
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
