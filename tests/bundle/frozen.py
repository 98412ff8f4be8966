"""The frozen tree that the tests of this folder run, where it has been made."""

from __future__ import annotations

from pathlib import Path

import pytest

TREE = Path(__file__).parents[2] / "dist" / "appliance"
PROGRAM = TREE / "appliance"

needs_tree = [
    pytest.mark.bundle,
    pytest.mark.skipif(not PROGRAM.is_file(), reason="there is no frozen tree here: make bundle"),
]
