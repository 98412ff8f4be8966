"""Freeze once more from another place and compare: ``python -m build.twice [--install]``, after ``make bundle``.

The source and the environment are copied (by hard links where that goes) under ``dist/twice`` and frozen there,
with another time zone, umask and hash seed. With ``--install`` the environment there is no copy: it is installed
anew from the lock, as another builder's would be. Exit status 1, and the paths that differ, when one byte, mode
or time is another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from build.freeze import ROOT, source_epoch
from build.tree import differences, tree_hash

SOURCES = ("appliance", "build", "model_packs", "requirements", "pyproject.toml", "LICENSE", "NOTICE")
OTHER = ROOT / "dist" / "twice" / "a place with another name"
LOCK = ROOT / "requirements" / "dev.txt"


def main() -> None:
    """Freeze in the other place and say whether the trees are the same."""
    parser = argparse.ArgumentParser(prog="python -m build.twice", description="Freeze twice and compare.")
    parser.add_argument(
        "--install",
        action="store_true",
        help="install the other environment from the lock, in place of a copy",
    )
    install = parser.parse_args().install
    first = ROOT / "dist" / "appliance"
    if not first.is_dir():
        raise SystemExit("dist/appliance is not there: make bundle")
    shutil.rmtree(OTHER.parent, ignore_errors=True)
    OTHER.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, OTHER / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, OTHER / name)
    make = installed_environment if install else copied_environment
    python = make(OTHER / "environment")
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(source_epoch()),
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "99",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(python), "-m", "build.freeze", "--out", str(OTHER / "made")]
    subprocess.run(command, cwd=OTHER, env=environment, check=True, umask=0o077)
    found = differences(first, OTHER / "made" / "appliance")
    if found:
        raise SystemExit("two builds of one source differ in:\n  " + "\n  ".join(found))
    print(f"the same bytes twice: {tree_hash(first)}")
    shutil.rmtree(OTHER.parent)


def copied_environment(target: Path) -> Path:
    """Copy this environment, without what makes it import this clone, and return its Python."""
    shutil.copytree(sys.prefix, target, symlinks=True, copy_function=_linked)
    for file in target.glob("lib/python*/site-packages/_editable_impl_*.pth"):
        file.unlink()
    return target / "bin" / "python"


def installed_environment(target: Path) -> Path:
    """Make an environment from the lock as the Makefile does, with nothing of this one, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    python = target / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*command, "-r", str(LOCK)], check=True)
    return python


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copy2(source, target, follow_symlinks=False)
    return target


if __name__ == "__main__":
    main()
