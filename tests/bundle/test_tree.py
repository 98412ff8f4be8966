"""The frozen tree: what is in it, and that it works with nothing around it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from appliance import __version__
from build.contents import MOST_BYTES, problems
from build.freeze import locked_names
from build.inventory import canonical
from build.tree import size
from tests.bundle.frozen import PROGRAM, TREE, needs_tree

pytestmark = needs_tree


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the frozen program in a folder and an environment that hold nothing."""
    return subprocess.run(
        [str(PROGRAM), *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=300
    )


def test_nothing_is_in_the_tree_that_should_not_be_and_nothing_is_missing() -> None:
    assert list(problems(TREE)) == []
    assert size(TREE) < MOST_BYTES


def test_every_component_is_in_the_bill_of_materials_with_its_licence() -> None:
    document = json.loads((TREE / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"]: component for component in document["components"]}
    assert {
        "litestar",
        "onnxruntime",
        "sqlite-vec",
        "pywhispercpp",
        "cpython",
        "libssl3",
    } <= components.keys()
    python_packages = {name for name, one in components.items() if one["purl"].startswith("pkg:pypi/")}
    assert python_packages <= locked_names() | {"pyinstaller"}
    assert python_packages == {canonical(name) for name in python_packages}
    listed = {file["name"] for one in components.values() for file in one.get("components", [])}
    libraries = {
        str(path.relative_to(TREE))
        for path in TREE.rglob("*.so*")
        if path.is_file() and not path.is_symlink()
    }
    assert libraries <= listed
    lines = (TREE / "LICENCES.txt").read_text().splitlines()
    for component in components.values():
        assert component["licenses"][0]["license"]["name"]
        assert any(line.startswith(f"{component['name']} {component['version']}: ") for line in lines)


def test_one_program_is_every_command() -> None:
    assert __version__ in run("version").stdout
    told = run("--help").stdout
    for command in ("serve", "pack", "key", "user", "doctor"):
        assert command in told


def test_the_smoke_test_passes_with_an_empty_environment() -> None:
    done = run("smoke", "--verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed, 0 skipped" in done.stdout
    for task in ("smoke-chat", "smoke-embedding", "smoke-rerank", "smoke-speech"):
        assert f"{task} (built with the tree)" in done.stdout


def test_the_tree_works_read_only_and_from_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(TREE)
    before = {path: path.stat().st_mtime_ns for path in TREE.rglob("*") if path.is_dir()}
    done = subprocess.run(
        [str(link / "appliance"), "smoke"], env={}, cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in TREE.rglob("*") if path.is_dir()}


def test_a_failure_shows_in_the_exit_status(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "pack"
    broken.mkdir(parents=True)
    (broken / "pack.toml").write_text("format = 2")
    done = run("smoke", "--packs", str(broken.parent))
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_an_unknown_worker_is_refused_and_the_library_path_is_not_passed_on() -> None:
    done = run("worker", "nothing", "--fd", "3", LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", "/x"))
    assert done.returncode != 0
    assert "unknown kind of worker" in done.stderr
