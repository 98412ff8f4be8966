"""The packages that the design names are declared, and those of the running service are really used by it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from build.inventory import canonical

ROOT = Path(__file__).parents[2]
RUNTIME = {
    "litestar": "litestar",
    "msgspec": "msgspec",
    "onnxruntime": "onnxruntime",
    "tokenizers": "tokenizers",
    "sqlite-utils": "sqlite_utils",
    "sqlite-vec": "sqlite_vec",
    "pywhispercpp": "_pywhispercpp",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    ends = str.maketrans(dict.fromkeys("<>=!~[;( ", "\n"))
    return {canonical(requirement.translate(ends).splitlines()[0]) for requirement in requirements}


def imported_by(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(RUNTIME))
def test_a_runtime_package_is_declared_locked_and_imported(package: str) -> None:
    assert package in names(PROJECT["dependencies"])
    assert f"\n{package}==" in "\n" + (ROOT / "requirements" / "runtime.txt").read_text()
    assert RUNTIME[package] in imported_by("appliance")


def test_the_exporter_and_the_freezer_are_declared_where_they_are_used() -> None:
    extras = PROJECT["optional-dependencies"]
    assert "optimum" in names(extras["packs"])
    assert "optimum" in imported_by("model_packs")
    assert "pyinstaller" in names(extras["dev"])
    assert "\npyinstaller==" in (ROOT / "requirements" / "dev.txt").read_text()


def test_neither_is_ever_part_of_the_service() -> None:
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    for package in ("optimum", "pyinstaller", "torch", "transformers"):
        assert f"\n{package}==" not in "\n" + lock
    assert not imported_by("appliance") & {"optimum", "PyInstaller", "torch", "transformers", "onnx"}
