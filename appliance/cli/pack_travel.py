"""``appliance pack`` export, import and diff: bundles on both sides of the air gap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from appliance.bundles.comparison import Contents, compare, contents_of_directory, contents_of_file
from appliance.bundles.installation import verify_pack
from appliance.bundles.packs import export_pack
from appliance.cli import settings_of
from appliance.cli.output import in_words, json_option, print_json, printable, progress_bar
from appliance.cli.pack_keys import key_option, password_option, secret_key, sequence_option
from appliance.cli.pack_source import keeping_user, reachable
from appliance.config import Settings
from appliance.control.client import run_command
from appliance.packs.archive import SUFFIX
from appliance.packs.errors import PackError
from appliance.packs.store import PackStore
from appliance.signing.errors import SigningError
from appliance.signing.signatures import (
    parse_subject,
    read_signature,
    sign_file,
    signature_path,
)
from appliance.signing.trust import read_list, trust_store
from appliance.signing.trust_list import SUFFIX as LIST_SUFFIX
from appliance.signing.verification import verify_file


@click.command("export")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    help="A folder that is there, or a file NAME.tar.zst (default: here).",
)
@sequence_option
@key_option
@password_option
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    name: str,
    output: Path,
    sequence: int | None,
    key_file: Path | None,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Write an installed pack as a bundle for the other side of the air gap, signed when a key is given."""
    if not output.is_dir() and not output.name.endswith(SUFFIX):
        raise click.UsageError(f"there is no folder {output}: make it, or name a file NAME{SUFFIX}")
    key = None if key_file is None else secret_key(key_file, password_file)
    directory = PackStore(settings_of(ctx).packs_dir).directory(name)
    number = int(time.time()) if sequence is None else sequence
    with progress_bar(f"Writing {name}", quiet=as_json) as progress:
        manifest = export_pack(directory, output, number, progress)
    target = output / manifest.file_name if output.is_dir() else output
    signature_path(target).unlink(missing_ok=True)  # one of an older file would not fit
    beside = None if key is None else sign_file(target, key, manifest.subject)
    size = target.stat().st_size
    if as_json:
        signature = None if beside is None else str(beside)
        print_json({"bundle": str(target), "size": size, "sequence": number, "signature": signature})
        return
    click.echo(f"Wrote {target} ({in_words(size)}).")
    click.echo(f"Wrote {beside}." if beside else f"It is not signed: appliance pack sign {target} --key KEY")


@click.command("import")
@click.argument(
    "paths", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True, metavar="FILE|DIR..."
)
@json_option
@click.pass_context
def import_(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Take in what came over the air gap: trust lists (*.trust.json) first, then packs, all of them signed.

    Everything is verified before any pack is installed. System bundles are named and left to 'appliance upgrade'.
    """
    settings = settings_of(ctx)
    files = list(_incoming(paths))
    if not files:
        # A stick that is not mounted is an empty folder.
        raise PackError("there is nothing to import: no *.tar.zst and no *.trust.json")
    lists = [_import_list(settings, path) for path in sorted(files, key=_list_number) if _is_list(path)]
    packs = [path for path in files if not _is_list(path)]
    systems = [path for path in packs if parse_subject(read_signature(path).comment).kind == "system"]
    packs = [path for path in packs if path not in systems]
    trust = trust_store(settings)
    for path in packs:
        verify_pack(path, trust, allow_unsigned=False)
    installed = []
    for path in packs:
        label = f"Installing {path.name}"
        with (
            reachable(settings, str(path.absolute())) as source,
            progress_bar(label, quiet=as_json) as progress,
            keeping_user(),
        ):
            installed.append(run_command(settings, "pack.install", {"source": source}, progress))
    if as_json:
        print_json({"lists": lists, "packs": installed, "systems": [str(path) for path in systems]})
        return
    for each in lists:
        click.echo(
            f"Trust list {each['sequence']} by key {each['signed_by']}: revoked {ids(each['revoked'])}, "
            f"now trusted {ids(each['trusted'])}."
        )
    for each in installed:
        click.echo(
            f"Installed {each['name']} {printable(each['version'])}, signed by key {each['signed_by']}."
        )
    for path in systems:
        click.echo(f"{path} is a system bundle: appliance upgrade {path}")


@click.command("diff")
@click.argument("before", metavar="NAME|FILE|DIR")
@click.argument("after", metavar="NAME|FILE|DIR")
@click.option(
    "--allow-unsigned", is_flag=True, help="Files need no signature; one that is there must be good."
)
@json_option
@click.pass_context
def diff(ctx: click.Context, before: str, after: str, allow_unsigned: bool, as_json: bool) -> None:
    """Compare two packs or system bundles by what their manifests list: files added, changed, gone, and sizes."""
    settings = settings_of(ctx)
    old, new = (_contents(settings, each, allow_unsigned=allow_unsigned) for each in (before, after))
    difference = compare(old, new)
    if as_json:
        print_json(difference)
        return
    click.echo(f"{printable(old.title)} -> {printable(new.title)}")
    for word in ("added", "changed", "gone"):
        for entry in difference[word]:
            sizes = [in_words(entry[side]) for side in ("before", "after") if entry[side] is not None]
            click.echo(f"{word:<8} {entry['path']}  {' -> '.join(sizes)}")
    total = difference["bytes_after"] - difference["bytes_before"]
    click.echo(
        f"{difference['same']} files are the same; {in_words(difference['bytes_before'])} -> "
        f"{in_words(difference['bytes_after'])} ({'+' if total >= 0 else '-'}{in_words(abs(total))})."
    )


def _incoming(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                each
                for each in path.iterdir()
                if each.name.endswith((SUFFIX, LIST_SUFFIX)) and each.name[0] != "."
            )
        else:
            yield path


def _is_list(path: Path) -> bool:
    return path.name.endswith(LIST_SUFFIX)


def _list_number(path: Path) -> int:
    return parse_subject(read_signature(path).comment).sequence if _is_list(path) else 0


def _import_list(settings: Settings, path: Path) -> dict[str, Any]:
    data, signature = read_list(path)
    try:
        document = data.decode()
    except UnicodeDecodeError as error:
        raise SigningError("damaged", f"{path.name} is damaged: not text") from error
    arguments = {"name": path.name, "document": document, "signature": signature.text()}
    with keeping_user():
        result: dict[str, Any] = run_command(settings, "trust.import", arguments)
    return result


def ids(keys: list[str]) -> str:
    """Return the ids of keys in words."""
    return ", ".join(keys) or "none"


def _contents(settings: Settings, what: str, *, allow_unsigned: bool) -> Contents:
    path = Path(what)
    if "/" not in what and not what.endswith(SUFFIX):
        return contents_of_directory(PackStore(settings.packs_dir).directory(what))
    if path.is_dir():
        return contents_of_directory(path)
    try:
        verified = verify_file(path, trust_store(settings), check_sequence=False)
    except SigningError as error:
        if error.code != "unsigned" or not allow_unsigned:
            raise
        verified = None
    return contents_of_file(path, verified)
