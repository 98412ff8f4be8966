"""What belongs into the frozen tree and what does not: the lists, and the check of a finished tree."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from build.elf import is_elf, needed_glibc

# Debian 12's: a box is at least that.
NEWEST_GLIBC = (2, 36)
MOST_BYTES = 200_000_000

EXCLUDED_MODULES = [
    # Builders, tests and their tools.
    *("model_packs", "tests", "torch", "transformers", "optimum", "onnx", "gguf", "safetensors", "tqdm"),
    *("pytest", "_pytest", "hypothesis", "mypy", "mypyc", "ruff", "uv", "pip", "setuptools", "pkg_resources"),
    *("wheel", "PyInstaller", "hatchling", "editables", "jsonschema", "referencing", "rpds", "openai"),
    *("ensurepip", "venv", "distutils", "lib2to3", "idlelib", "unittest", "doctest", "pydoc", "test"),
    *("numpy.testing", "numpy.f2py", "numpy.distutils", "numpy._core.tests", "pywhispercpp.examples"),
    *("onnxruntime.quantization", "onnxruntime.tools", "onnxruntime.transformers", "onnxruntime.datasets"),
    # What could phone home, or is only imported where it is installed.
    *(
        "huggingface_hub",
        "hf_xet",
        "fsspec",
        "faker",
        "polyfactory",
        "pydantic",
        "pydantic_core",
        "truststore",
    ),
    *("attrs", "annotated_types", "tomli_w", "tomlkit"),
    *("requests", "urllib3", "sympy", "scipy", "pandas", "matplotlib", "PIL", "IPython", "twisted"),
    *("prometheus_client.bridge", "prometheus_client.twisted", "litestar.cli", "litestar.testing"),
    # The framework's test client, and what it would bring.
    *("httpx", "httpcore", "certifi", "rich", "rich_click", "pygments", "markdown_it", "mdurl"),
    # Another SQLite (build/shims stands in for the module), and a second binding of zstd.
    *("_sqlite3", "zstandard._cffi", "zstandard.backend_cffi"),
    # Libraries under the GPL or AGPL, and what a service has no use for.
    *("readline", "_gdbm", "_dbm", "dbm.gnu", "dbm.ndbm", "curses", "_curses", "_curses_panel"),
    *("tkinter", "_tkinter", "turtle", "turtledemo"),
]
# Parts of the C library that PyInstaller does not know as such: a box has its own, which must fit its others.
EXCLUDED_LIBRARIES = {"libmvec.so.1"}

# Path parts that no file of the tree may have.
FORBIDDEN_PARTS = re.compile(
    r"^(torch|nvidia|triton|transformers|optimum|onnx|gguf|safetensors|tests?|testing|pip|setuptools"
    r"|huggingface_hub|hf_xet|faker|Faker|polyfactory|hypothesis|pytest|_pytest|mypy|ruff|telemetry|sqlite3)$"
)
# GPL and AGPL libraries that Python's own modules may bring; another libsqlite3; parts of the C library.
FORBIDDEN_LIBRARIES = re.compile(
    r"^(libreadline|libgdbm|libdb-|libsqlite3|_sqlite3|libc\.so|libm\.so|libmvec|libpthread|ld-linux)"
)
# One SQLite is wanted.
ALLOWED_LIBRARIES = re.compile(r"^_internal/pysqlite3/_sqlite3\.")

REQUIRED = (
    "appliance",
    "sbom.cdx.json",
    "LICENCES.txt",
    "_internal/base_library.zip",
    "_internal/sqlite_vec/vec0.so",
    "_internal/onnxruntime/capi/onnxruntime_pybind11_state*.so",
    "_internal/_pywhispercpp*.so",
    "_internal/pywhispercpp.libs/libwhisper*",
    "_internal/pysqlite3/_sqlite3*.so",
    "_internal/swagger_ui_bundle/vendor/*/swagger-ui-bundle.js",
    "_internal/swagger_ui_bundle/vendor/*/swagger-ui.css",
    "_internal/tzdata/zoneinfo/Europe/Berlin",
    "smoke/packs/smoke-chat/pack.toml",
)


def problems(tree: Path) -> Iterator[str]:
    """Yield a line for everything that is wrong with the finished tree."""
    for pattern in REQUIRED:
        if not any(tree.glob(pattern)):
            yield f"absent: {pattern}"
    total = 0
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        total += path.lstat().st_size if not path.is_dir() else 0
        yield from _file_problems(tree, path, name)
    if total >= MOST_BYTES:
        yield f"too large: {total} bytes, {MOST_BYTES} are the aim"


def _file_problems(tree: Path, path: Path, name: str) -> Iterator[str]:
    forbidden = [part for part in path.relative_to(tree).parts if FORBIDDEN_PARTS.match(part)]
    if forbidden:
        yield f"does not belong here: {name}"
    if FORBIDDEN_LIBRARIES.match(path.name) and not ALLOWED_LIBRARIES.match(name):
        yield f"this library does not belong here: {name}"
    if path.is_symlink():
        target = path.resolve()
        if path.readlink().is_absolute() or not target.is_relative_to(tree.resolve()) or not target.exists():
            yield f"a link that leads out of the tree: {name}"
        return
    if path.is_file():
        if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH):
            yield f"may be changed by others or runs as others: {name}"
        if is_elf(path) and (newest := max(needed_glibc(path), default=(0,))) > NEWEST_GLIBC:
            yield f"needs glibc {'.'.join(map(str, newest))}: {name}"
