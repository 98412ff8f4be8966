"""What, beside the recipe, decides a pack's bytes: the builder's own modules, its texts and what it runs on."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from model_packs.errors import RecipeError

ROOT = Path(__file__).resolve().parent.parent

# Packages that write or run the weights; the figures in a manifest come from them too.
PACKAGES = ("gguf", "numpy", "onnx", "onnxruntime", "pywhispercpp", "tokenizers")
# What every kind goes through.
FRAME = "model_packs.build"
# Run as a program in the export environment, so no import names it; the lock pins that environment.
EXPORTER = "model_packs.export_onnx"
EXPORT_LOCK = "requirements/export.txt"
EXPORTING_KINDS = ("optimum-encoder", "optimum-decoder")
# Their recipes may name one of the chat templates.
TEMPLATED_KINDS = ("decoder-gguf", "decoder-safetensors")

# Any import of this package's modules, wherever it stands and however it is broken into lines.
_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+(model_packs[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n(]*)|import[ \t]+(model_packs[\w.]*))",
    re.MULTILINE,
)


@functools.cache
def builder_sha256(kind: str, module: str, root: Path = ROOT) -> str:
    """Return one hash of everything but the recipe that the packs of ``kind``, built by ``module``, depend on.

    The modules are found by their text: nothing heavy is imported. It is taken once in a process, as
    the modules are. Raises RecipeError when the module is not there.
    """
    modules = [FRAME, module, *([EXPORTER] if kind in EXPORTING_KINDS else [])]
    folders = ["samples", *(["templates"] if kind in TEMPLATED_KINDS else [])]
    files = _modules(modules, root) | {
        path for folder in folders for path in (root / "model_packs" / folder).iterdir() if path.is_file()
    }
    if kind in EXPORTING_KINDS:
        files.add(root / EXPORT_LOCK)
    content = {
        "files": sorted((path.relative_to(root).as_posix(), _file_sha256(path)) for path in files),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def _modules(names: list[str], root: Path) -> set[Path]:
    """Return the files of the modules ``names`` and of all that they import of this package, in turn."""
    files: set[Path] = set()
    waiting: list[Path] = []
    for name in names:
        if (path := _module_file(name, root)) is None:
            raise RecipeError(f"the builder module {name} is not there")
        waiting.append(path)
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            found = (_module_file(name, root) for name in _imported(path.read_bytes()))
            waiting += [imported for imported in found if imported is not None]
    return files


def _imported(text: bytes) -> Iterator[str]:
    """Yield each name that an import may load as a module of this package, the packages it lies in included."""
    for match in _IMPORT.finditer(text):
        parts = (match[1] or match[3]).decode().split(".")
        for depth in range(len(parts)):
            yield ".".join(parts[: depth + 1])
        # An imported name may be a module or a function; the folder tells.
        for name in re.findall(rb"\w+", match[2] or b""):
            yield ".".join([*parts, name.decode()])


def _module_file(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
