"""What does not belong into a tree is found, and so is what has gone missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from build.contents import NEWEST_GLIBC, REQUIRED, problems
from build.elf import has_section, is_elf, needed_glibc
from build.tree import differences, normalise, tree_hash

LIBRARY = Path(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree that holds a file wherever one must be, and is as it should be."""
    root = tmp_path / "tree"
    for pattern in REQUIRED:
        path = root / pattern.replace("*", ".x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    normalise(root, 1_000_000)
    return root


def test_a_whole_tree_has_no_problems(tree: Path) -> None:
    assert list(problems(tree)) == []


@pytest.mark.parametrize("pattern", REQUIRED)
def test_what_is_missing_is_named(tree: Path, pattern: str) -> None:
    (tree / pattern.replace("*", ".x")).unlink()
    assert list(problems(tree)) == [f"absent: {pattern}"]


@pytest.mark.parametrize(
    "name", ["_internal/torch/x.py", "_internal/numpy/tests/a", "_internal/telemetry/x", "_internal/faker/x"]
)
def test_packages_that_do_not_belong_are_named(tree: Path, name: str) -> None:
    (tree / name).parent.mkdir(parents=True)
    (tree / name).touch(0o644)
    assert any(name in line for line in problems(tree))


@pytest.mark.parametrize("name", ["libreadline.so.8", "libsqlite3.so.0", "libm.so.6", "_sqlite3.so"])
def test_libraries_that_do_not_belong_are_named(tree: Path, name: str) -> None:
    (tree / "_internal" / name).touch(0o644)
    assert list(problems(tree)) == [f"this library does not belong here: _internal/{name}"]


def test_links_out_of_the_tree_and_loose_modes_are_named(tree: Path) -> None:
    (tree / "out").symlink_to("/etc/passwd")
    (tree / "nowhere").symlink_to("absent")
    (tree / "in").symlink_to("appliance")
    (tree / "appliance").chmod(0o4775)
    assert sorted(problems(tree)) == [
        "a link that leads out of the tree: nowhere",
        "a link that leads out of the tree: out",
        "may be changed by others or runs as others: appliance",
    ]


def test_the_c_library_that_a_file_needs_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_elf(LIBRARY)
    needed = needed_glibc(LIBRARY)
    assert (2, 2, 5) in needed
    assert max(needed) <= NEWEST_GLIBC
    assert has_section(LIBRARY, b".dynstr")
    assert not has_section(LIBRARY, b".no_such_section")
    shutil.copy(LIBRARY, tree / "_internal" / "library.so")
    monkeypatch.setattr("build.contents.NEWEST_GLIBC", (2, 3))
    (line,) = problems(tree)
    assert line.startswith("needs glibc 2.")
    assert line.endswith("library.so")


def test_a_plain_file_is_no_elf(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(sys.version)
    assert not is_elf(tmp_path / "file")


def test_trees_are_compared_by_content_mode_and_time(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tree, other, symlinks=True)
    normalise(other, 1_000_000)
    assert tree_hash(tree) == tree_hash(other)
    (other / "appliance").chmod(0o700)
    (other / "more").touch()
    normalise(other, 1_000_000)
    assert differences(tree, other) == ["appliance", "more"]
    normalise(other, 2_000_000)
    assert "sbom.cdx.json" in differences(tree, other)
