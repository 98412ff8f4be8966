"""The shape of the house: imports point one way, one SQLite library, one reader of the environment."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "appliance"

# Each room may import from itself and from the rooms of the lines below it.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"smoke"},
    {"app"},
    {"api"},
    {"control"},
    {"gateway"},
    {"jobs", "doctor", "releases"},
    {"backup"},
    {"accounts", "engines", "bundles"},
    {"packs", "audit"},
    {"workers", "storage", "network", "signing", "service", "tls"},
    {"config"},
    {"errors", "clock", "disk", "frozen", "__init__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield (relative.parts[0] if len(relative.parts) > 1 else relative.stem), path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_a_level() -> None:
    assert {room for room, _ in modules()} <= set(LEVEL)


def test_the_docs_draw_every_room_and_say_the_same_order() -> None:
    text = (ROOT.parent / "docs/architecture.md").read_text()
    order = re.search("Imports point downward only: `([^`]+)`", text)
    assert order is not None
    told = [set(re.findall(r"\w+", level)) for level in order[1].split("→")]
    assert told == [rooms - {"__init__"} for rooms in LAYERS if rooms != {"__main__"}]
    for room in LEVEL.keys() - {"__init__"}:
        assert re.search(rf"^  .*\b{room}(/|\.py) ", text, re.MULTILINE), room


@pytest.mark.parametrize(
    ("room", "path"), list(modules()), ids=lambda value: str(value).removeprefix(str(ROOT))
)
def test_imports_point_downward(room: str, path: Path) -> None:
    for module in imported(path):
        if module.split(".")[0] != "appliance":
            assert module.split(".")[0] not in {"model_packs", "tests"}
            continue
        other = room_of(module)
        assert other == room or LEVEL[other] > LEVEL[room], f"{path} imports {module}"


def test_engines_know_no_http_and_the_api_no_tensor_runtime() -> None:
    for room, path in modules():
        names = {module.split(".")[0] for module in imported(path)}
        if room == "engines":
            assert not names & {"litestar", "httpx", "uvicorn"}, path
        if room in {"api", "gateway", "accounts", "control"}:
            assert not names & {"onnxruntime", "pywhispercpp", "tokenizers"}, path


def test_one_module_opens_sqlite() -> None:
    users = {
        path.name
        for _, path in modules()
        if any(m.split(".")[0] in {"sqlite3", "pysqlite3"} for m in imported(path))
    }
    assert users == {"sqlite.py"}


def test_one_module_reads_settings_from_the_environment() -> None:
    for _, path in modules():
        # The package itself switches a library's telemetry off; workers clean their environment,
        # the frozen program the bootloader's, and a service takes over what its manager hands it.
        if (
            path.name not in {"config.py", "__init__.py", "frozen.py", "handover.py"}
            and "workers" not in path.parts
        ):
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_one_module_knows_whether_the_program_is_frozen() -> None:
    for _, path in modules():
        text = path.read_text()
        if path.name != "frozen.py":
            assert "sys.frozen" not in text, path
            assert '"frozen"' not in text, path
            assert "_MEIPASS" not in text, path


def test_no_file_is_two_files() -> None:
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "model_packs").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 500, path
