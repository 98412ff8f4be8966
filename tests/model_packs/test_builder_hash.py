"""The builder's hash: it changes with whatever the kind's packs come from, and with nothing else."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_packs.builder_hash import EXPORT_LOCK, ROOT, builder_sha256
from model_packs.errors import RecipeError
from model_packs.recipe import KINDS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the builder that a test may change."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "model_packs", tmp_path / "model_packs", ignore=ignore)
    (tmp_path / EXPORT_LOCK).parent.mkdir()
    shutil.copyfile(ROOT / EXPORT_LOCK, tmp_path / EXPORT_LOCK)
    return tmp_path


def hashes(root: Path) -> dict[str, str]:
    builder_sha256.cache_clear()
    return {kind: builder_sha256(kind, module, root) for kind, module in KINDS.items()}


def changed(root: Path, change: Callable[[], object]) -> set[str]:
    """Return the kinds whose hash the change changes."""
    before = hashes(root)
    change()
    after = hashes(root)
    return {kind for kind in KINDS if before[kind] != after[kind]}


DECODERS = {"decoder-gguf", "decoder-safetensors"}
EXPORTED = {"optimum-encoder", "optimum-decoder"}


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("model_packs/build.py", set(KINDS)),
        ("model_packs/extract.py", set(KINDS)),
        ("model_packs/samples/english.txt", set(KINDS)),
        ("model_packs/decoder/graph.py", DECODERS),
        ("model_packs/decoder/rotation.py", DECODERS),
        ("model_packs/templates/chatml-hermes.jinja", DECODERS),
        ("model_packs/row_scales.py", {"encoder-int8", *DECODERS, *EXPORTED}),
        ("model_packs/decoder/tokenizer.py", {"decoder-gguf"}),
        ("model_packs/speech/ggml.py", {"whisper-ct2"}),  # imported inside a function
        ("model_packs/speech/__init__.py", {"whisper-ct2"}),
        ("model_packs/int8_matmul.py", {"encoder-int8", *EXPORTED}),
        ("model_packs/onnx_files.py", {"onnx-files"}),
        ("model_packs/export_onnx.py", EXPORTED),  # run as a program, imported by nobody
        (EXPORT_LOCK, EXPORTED),
        ("model_packs/__main__.py", set()),
    ],
)
def test_a_changed_file_changes_the_hash_of_the_kinds_that_use_it(
    path: str, kinds: set[str], root: Path
) -> None:
    def change() -> None:
        with (root / path).open("a", encoding="utf-8") as file:
            file.write("\n")

    assert changed(root, change) == kinds


def test_another_version_of_a_package_that_writes_the_bytes_changes_every_hash(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        real = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "0.0.1" if name == "onnx" else real(name)
        )

    assert changed(root, change) == set(KINDS)


@pytest.mark.parametrize(
    "line",
    [
        "import model_packs.fresh",
        "from model_packs import fresh",
        "from model_packs.fresh import value",
        "from model_packs import (\n    errors,\n    fresh,\n)",
        "def late() -> None:\n    from model_packs.fresh import value",
    ],
)
def test_every_way_to_import_a_module_is_seen(line: str, root: Path) -> None:
    (root / "model_packs" / "fresh.py").write_text("value = 1\n")
    with (root / "model_packs" / "onnx_files.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert changed(root, lambda: (root / "model_packs" / "fresh.py").write_text("value = 2\n")) == {
        "onnx-files"
    }


def test_hashing_imports_nothing_heavy() -> None:
    script = (
        "import sys; from model_packs.recipe import load_recipes, recipe_sha256\n"
        "for recipe in load_recipes().values(): recipe_sha256(recipe)\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'gguf', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_missing_builder_is_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(RecipeError, match=r"model_packs\.gone"):
        builder_sha256("gone", "model_packs.gone", root)
