"""The builder's commands: ``python -m model_packs build|list``.

Nothing heavy is imported here: with every pack in the cache, ``build`` must answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model_packs.errors import BuildError, RecipeError
from model_packs.progress import say
from model_packs.recipe import RECIPES, Recipe, load_recipes, read_recipe


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 a build failed."""
    options = _parser().parse_args(arguments)
    try:
        return _list() if options.command == "list" else _build(options)
    except BuildError as error:
        say(f"error: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model_packs", description="Build model packs from recipes."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the recipes")
    build = commands.add_parser("build", help="build packs, or take them from the cache")
    build.add_argument("name", nargs="*", help="a recipe's name, or the path of a recipe (*.toml)")
    build.add_argument("--default", action="store_true", help="the default set")
    build.add_argument("--into", "--out", dest="into", type=Path, help="put each finished pack into DIR/NAME")
    build.add_argument("--cache", type=Path, help="the cache folder (default: the user's)")
    build.add_argument(
        "--verify", action="store_true", help="check the hashes of cached packs, not only sizes"
    )
    return parser


def _list() -> int:
    for recipe in load_recipes().values():
        mark = "default" if recipe.default else ""
        print(f"{recipe.name:28} {recipe.task:14} {recipe.license:24} {mark:8} {recipe.description}")
    return 0


def _build(options: argparse.Namespace) -> int:
    from appliance.packs.manifest import read_manifest
    from model_packs.build import build_pack
    from model_packs.cache import default_cache
    from model_packs.install import install_pack

    wanted = _selected(options.name, default=options.default)
    cache: Path = options.cache or default_cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot use the cache folder {cache}: {error.strerror}") from error
    for recipe, folder in wanted:
        pack = build_pack(recipe, cache, verify=options.verify, recipes=folder)
        if options.into is not None:
            install_pack(pack, read_manifest(pack), options.into)
        print(options.into / recipe.name if options.into is not None else pack)
    return 0


def _selected(names: list[str], *, default: bool) -> list[tuple[Recipe, Path]]:
    """Return the recipes asked for, each with the folder its relative paths start from."""
    recipes = load_recipes()
    wanted = [(recipe, RECIPES) for recipe in recipes.values() if default and recipe.default]
    for name in names:
        if name.endswith(".toml"):
            path = Path(name)
            wanted.append((read_recipe(path), path.resolve().parent))
        elif name not in recipes:
            raise RecipeError(f"no recipe is called {name!r}; there are {', '.join(sorted(recipes))}")
        elif not (default and recipes[name].default):
            wanted.append((recipes[name], RECIPES))
    if not wanted:
        raise RecipeError("say which packs: names, paths of recipes, or --default")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
