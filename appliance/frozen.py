"""Whether this program is frozen (PyInstaller), where its tree is, and how it runs itself again.

The only module that looks at ``sys.frozen``: in a clone and in an environment everything else works alike.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# What the bootloader puts its own folder into, and where it keeps what was there before.
_LIBRARY_PATH = "LD_LIBRARY_PATH"
_ORIGINAL_LIBRARY_PATH = "LD_LIBRARY_PATH_ORIG"
# How the bootloader tells its own second start from the first; a program started from here is no such start.
_BOOTLOADER_VARIABLES = ("_PYI_ARCHIVE_FILE", "_PYI_APPLICATION_HOME_DIR", "_PYI_PARENT_PROCESS_LEVEL")


def is_frozen() -> bool:
    """Return whether this is the frozen program of a release tree."""
    return bool(getattr(sys, "frozen", False))


def tree() -> Path:
    """Return the folder of the tree: where the frozen executable is, else the one that has the package.

    Links are followed: a program started through ``current`` keeps to its own release when that changes.
    """
    if is_frozen():
        return Path(sys.executable).resolve().parent
    return Path(__file__).resolve().parents[1]


def program_file() -> Path:
    """Return the file that this program is started from: the executable, or the package's first module."""
    if is_frozen():
        return Path(sys.executable).resolve()
    return Path(__file__).resolve().parent / "__init__.py"


def executable() -> list[str]:
    """Return the command that runs this program again; arguments follow it."""
    if is_frozen():
        return [str(program_file())]
    # -P keeps the current directory off the module path.
    return [sys.executable, "-P", "-m", "appliance"]


def restore_environment() -> None:
    """Give the environment back the library path that it had before the bootloader changed it.

    The loader read it when this process began, so nothing changes here; programs that this one starts
    would otherwise load the tree's libraries in place of the system's.
    """
    if not is_frozen():
        return
    original = os.environ.pop(_ORIGINAL_LIBRARY_PATH, None)
    if original is not None:
        os.environ[_LIBRARY_PATH] = original
    else:
        os.environ.pop(_LIBRARY_PATH, None)
    for name in _BOOTLOADER_VARIABLES:
        os.environ.pop(name, None)
