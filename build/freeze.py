"""Make the frozen tree: ``python -m build.freeze [--out DIST] [--trust DIR]``; ``make bundle`` runs it.

``DIST/appliance`` is the tree, ``DIST/work`` PyInstaller's own. The same source and environment give the
same bytes, wherever they are and whenever it runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from appliance import __version__
from build.contents import problems
from build.elf import has_section, is_elf
from build.errors import FreezeError
from build.inventory import canonical, components
from build.sbom import write_licences, write_sbom
from build.smoke_packs import write_smoke_packs
from build.tree import normalise, size, tree_hash

ROOT = Path(__file__).resolve().parents[1]
RUNTIME_LOCK = ROOT / "requirements" / "runtime.txt"
# 1 January 2026: for a source that has no history.
NO_COMMIT = 1_767_225_600
# What the tree holds beside the locked runtime packages: the bootloader.
BUILD_COMPONENTS = {"pyinstaller"}


def main() -> None:
    """Freeze, finish and check; exit status 1 and every reason when something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m build.freeze", description="Make the frozen tree.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--trust", type=Path, help="a folder of *.pub: the keys that the tree trusts")
    arguments = parser.parse_args()
    try:
        tree = freeze(arguments.out.absolute(), arguments.trust)
    except FreezeError as error:
        raise SystemExit(f"freeze: {error}") from None
    print(f"{tree}: {size(tree) / 1e6:.1f} MB, SHA-256 of the tree {tree_hash(tree)}")


def freeze(out: Path, trust: Path | None = None) -> Path:
    """Make ``out/appliance`` anew and return it. Raises FreezeError."""
    epoch = source_epoch()
    keys = trusted_keys(trust)
    tree = out / "appliance"
    shutil.rmtree(tree, ignore_errors=True)
    _run_pyinstaller(out, epoch)
    _strip(tree)
    write_smoke_packs(tree / "smoke" / "packs")
    (tree / "trust").mkdir()
    for key in keys:
        shutil.copyfile(key, tree / "trust" / key.name)
    parts = components(out / "origins.json", ROOT)
    unlocked = (
        {part.name for part in parts if part.kind == "python-package"} - locked_names() - BUILD_COMPONENTS
    )
    if unlocked:
        raise FreezeError(f"in the tree and not in {RUNTIME_LOCK.name}: {', '.join(sorted(unlocked))}")
    write_sbom(tree, __version__, parts)
    write_licences(tree, ROOT, parts)
    normalise(tree, epoch)
    found = list(problems(tree))
    if found:
        raise FreezeError("the tree is not what it must be:\n  " + "\n  ".join(found))
    return tree


def source_epoch() -> int:
    """Return SOURCE_DATE_EPOCH, else the time of the last commit, else a fixed time."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return NO_COMMIT
    return int(answer) if answer.isdigit() else NO_COMMIT


def trusted_keys(folder: Path | None) -> list[Path]:
    """Return the public keys of ``folder``, by name. Raises FreezeError when it has none."""
    if folder is None:
        return []
    keys = sorted(folder.glob("*.pub"))
    if not keys:
        raise FreezeError(f"{folder} holds no *.pub: a tree that should trust keys would trust none")
    return keys


def locked_names() -> set[str]:
    """Return the names of the packages in the lock of the runtime."""
    lines = RUNTIME_LOCK.read_text("utf-8").splitlines()
    return {canonical(line.split("==")[0]) for line in lines if "==" in line and not line.startswith(" ")}


def _run_pyinstaller(out: Path, epoch: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
    }
    environment = {
        **kept,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        # Sets in code objects are written in the order of their hashes.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Modules compiled here and now, never from a cache that another run may have left.
        "PYTHONPYCACHEPREFIX": str(out / "work" / "no-cache"),
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYINSTALLER_CONFIG_DIR": str(out / "work" / "config"),
    }
    shutil.rmtree(out / "work", ignore_errors=True)
    command = [sys.executable, "-m", "PyInstaller", "--clean", "--noconfirm", "--log-level", "WARN"]
    command += [
        "--workpath",
        str(out / "work"),
        "--distpath",
        str(out),
        str(ROOT / "build" / "appliance.spec"),
    ]
    # In a folder that holds nothing to import.
    done = subprocess.run(command, env=environment, cwd=out, check=False)
    if done.returncode != 0:
        raise FreezeError(f"PyInstaller ended with status {done.returncode}")


def _strip(tree: Path) -> None:
    """Take the debugging sections out of the libraries that have them; symbols that are linked to stay."""
    strip = shutil.which("strip")
    if strip is None:
        raise FreezeError("strip is absent: apt-get install binutils")
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and is_elf(path) and has_section(path, b".debug_info"):
            mode = path.stat().st_mode
            subprocess.run([strip, "--strip-debug", "--preserve-dates", str(path)], check=True)
            path.chmod(mode)


if __name__ == "__main__":
    main()
