"""``appliance pack``: list, show, verify, install, remove and archive model packs.

Exit status: 0 when all is well, 1 when something failed or a pack is not whole, 2 for a wrong call.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance.cli import settings_of
from appliance.control.client import run_command
from appliance.packs.archive import SUFFIX
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest
from appliance.packs.meter import Progress
from appliance.packs.store import InstalledPack, PackStore, check_pack

json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@click.group("pack")
def command() -> None:
    """List, show, verify, install, remove and archive model packs."""


@command.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the installed packs, broken ones included."""
    packs = _store(ctx).list()
    if as_json:
        _print_json([_summary(pack) for pack in packs])
        return
    if not packs:
        click.echo("No packs are installed. Install one: appliance pack install FILE_OR_DIR")
    for pack in packs:
        if pack.manifest is None:
            click.echo(f"{pack.name:<32} BROKEN: {printable(str(pack.problem))}")
        else:
            manifest = pack.manifest
            sizes = f"{in_words(_size(manifest)):>9}  {manifest.task:<14}"
            click.echo(f"{pack.name:<32} {sizes} {printable(manifest.description)}")


@command.command("show")
@click.argument("name")
@json_option
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what a pack is, where it came from and how good it was measured to be."""
    pack = _store(ctx).get(name)
    if pack.manifest is None:
        raise PackError(f"pack {name} is broken: {pack.problem}")
    if as_json:
        _print_json({**msgspec.to_builtins(pack.manifest), "directory": str(pack.directory)})
        return
    for title, text in _description(pack.manifest, pack.directory):
        click.echo(f"{title + ':':<14} {printable(text)}")


@command.command("verify")
@click.argument("packs", nargs=-1, metavar="[NAME|FILE|DIR]...")
@json_option
@click.pass_context
def verify(ctx: click.Context, packs: tuple[str, ...], as_json: bool) -> None:
    """Compare every byte with the packs' manifests; without arguments, of all installed packs.

    An argument with a slash, or that ends in .tar.zst, is a file or directory to check without installing.
    """
    store = _store(ctx)
    results = [
        {"pack": pack, "problem": _problem(store, pack, quiet=as_json)}
        for pack in packs or [pack.name for pack in store.list()]
    ]
    if as_json:
        _print_json(results)
    else:
        for result in results:
            click.echo(f"{result['pack']}: {printable(result['problem'] or 'whole')}")
        if not results:
            click.echo("No packs are installed.")
    if any(result["problem"] for result in results):
        sys.exit(1)


@command.command("install")
@click.argument("source", metavar="FILE|DIR|URL")
@json_option
@click.pass_context
def install(ctx: click.Context, source: str, as_json: bool) -> None:
    """Check and install an archive (NAME.tar.zst) or an unpacked pack; an older version is replaced.

    A URL is fetched by the box itself, and only from networks that the setting egress_networks allows.
    """
    if not source.startswith(("http://", "https://")):
        if not Path(source).exists():
            raise click.BadParameter(f"there is no {source}", param_hint="source")
        source = str(Path(source).absolute())  # the service may have another working directory
    arguments = {"source": source}
    with progress_bar(f"Installing {source.rsplit('/', 1)[-1]}", quiet=as_json) as progress:
        installed = run_command(settings_of(ctx), "pack.install", arguments, progress)
    if as_json:
        _print_json(installed)
    else:
        click.echo(f"Installed {installed['name']} {printable(installed['version'])}.")


@command.command("remove")
@click.argument("name")
@json_option
@click.pass_context
def remove(ctx: click.Context, name: str, as_json: bool) -> None:
    """Remove an installed pack; a running service stops serving it."""
    removed = run_command(settings_of(ctx), "pack.remove", {"name": name})
    if as_json:
        _print_json(removed)
    else:
        click.echo(f"Removed {name}.")


@command.command("archive")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"The file (default: NAME{SUFFIX}).")
@json_option
@click.pass_context
def archive(ctx: click.Context, name: str, output: Path | None, as_json: bool) -> None:
    """Write an installed pack as one archive, to carry to another box."""
    target = output or Path(f"{name}{SUFFIX}")
    if target.is_dir():
        target /= f"{name}{SUFFIX}"
    with progress_bar(f"Writing {target.name}", quiet=as_json) as progress:
        _store(ctx).archive(name, target, progress)
    size = target.stat().st_size
    if as_json:
        _print_json({"archive": str(target), "size": size})
    else:
        click.echo(f"Wrote {target} ({in_words(size)}).")


def in_words(size: int) -> str:
    """Return a number of bytes as people read it, such as 134.2 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def printable(text: str) -> str:
    """Return ``text`` without control characters: a pack's words must not steer the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Progress]:
    """Give a progress callback that draws a bar on a terminal's standard error, from the first total on."""
    bar: Any = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if quiet or total <= 0:
            return
        if bar is not None and done < bar.pos:  # the next piece of work begins
            bar.__exit__(None, None, None)
            bar = None
        if bar is None:
            bar = click.progressbar(length=total, label=label, file=sys.stderr, show_pos=False)
            bar.__enter__()
        bar.update(done - bar.pos)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def _store(ctx: click.Context) -> PackStore:
    return PackStore(settings_of(ctx).packs_dir)


def _problem(store: PackStore, pack: str, *, quiet: bool) -> str | None:
    with progress_bar(f"Verifying {pack}", quiet=quiet) as progress:
        try:
            if "/" in pack or pack.endswith(SUFFIX):
                check_pack(Path(pack), progress)
            else:
                store.verify(pack, progress)
        except PackError as error:
            return error.message
    return None


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.file)


def _summary(pack: InstalledPack) -> dict[str, Any]:
    manifest = pack.manifest
    if manifest is None:
        return {"name": pack.name, "problem": pack.problem}
    return {
        "name": pack.name,
        "problem": None,
        "version": manifest.version,
        "task": manifest.task,
        "engine": manifest.engine,
        "description": manifest.description,
        "license": manifest.license,
        "size": _size(manifest),
        "memory_bytes": manifest.memory_bytes,
    }


def _description(manifest: Manifest, directory: Path) -> Iterator[tuple[str, str]]:
    yield "Name", f"{manifest.name} {manifest.version}"
    yield "Task", f"{manifest.task} (engine {manifest.engine})"
    yield "Description", manifest.description
    yield "Licence", manifest.license
    yield "Owner", manifest.owned_by
    if manifest.parameters:
        yield "Parameters", f"{manifest.parameters / 1e6:.1f} million"
    if manifest.context_length:
        yield "Context", f"{manifest.context_length} tokens"
    if manifest.memory_bytes:
        yield "Memory", in_words(manifest.memory_bytes)
    yield "Size", in_words(_size(manifest))
    yield "Directory", str(directory)
    yield "Recipe", manifest.recipe_sha256
    for source in manifest.source:
        yield "Source", f"{source.package} {source.version} ({source.license}), sha256 {source.sha256}"
    for quality in manifest.quality:
        reference = "" if quality.reference is None else f", source model {quality.reference:g}"
        limit = "" if quality.limit is None else f", limit {quality.limit:g}"
        sample = f" ({quality.sample})" if quality.sample else ""
        profile = "" if quality.profile is None else f"{quality.profile}: "
        yield "Quality", f"{profile}{quality.metric} {quality.value:g}{reference}{limit}{sample}"
    for file in manifest.file:
        yield "File", f"{file.path}, {in_words(file.size)}, sha256 {file.sha256}"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
