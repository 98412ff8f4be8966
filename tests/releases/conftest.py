"""A maker of bundles and a box that runs its first release."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli.upgrade import install_first
from tests.releases.box import FakeBox, Maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Return a maker with a key that the boxes trust."""
    folder = tmp_path / "maker"
    folder.mkdir()
    return Maker(folder)


@pytest.fixture
def box(tmp_path: Path, maker: Maker) -> FakeBox:
    """Return a box that serves release number 1."""
    made = FakeBox(tmp_path / "box", maker)
    install(made, maker.bundle(1))
    made.service.start()
    made.service.write("first")
    return made


def install(made: FakeBox, bundle: Path) -> None:
    """Install the first release as install.sh does: from a tree that other tools unpacked."""
    sequence = bundle.name.split("-")[2].split(".")[0]
    staged = made.layout.releases / ".staging-install"
    made.layout.make()
    (made.maker.folder / f"tree-{sequence}").rename(staged)
    install_first(made.settings, made.box, bundle, staged)
