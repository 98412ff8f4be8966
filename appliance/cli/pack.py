"""``appliance pack``: list, show, verify, install, remove, sign and carry model packs.

Exit status: 0 when all is well, 1 when something failed or a pack is not whole, 2 for a wrong call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance.bundles.installation import verify_pack
from appliance.bundles.packs import pack_reader
from appliance.bundles.reader import check_bundle
from appliance.bundles.tree import check_tree
from appliance.cli import settings_of
from appliance.cli.output import in_words, json_option, print_json, printable, progress_bar
from appliance.cli.pack_keys import keygen, keys, revoke, sign
from appliance.cli.pack_source import reachable
from appliance.cli.pack_travel import diff, export, ids, import_
from appliance.config import Settings
from appliance.control.client import run_command
from appliance.errors import ApplianceError
from appliance.packs.archive import SUFFIX
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest
from appliance.packs.meter import Meter, Progress
from appliance.packs.store import InstalledPack, PackStore, check_pack
from appliance.signing.errors import SigningError
from appliance.signing.signatures import parse_subject, read_signature
from appliance.signing.trust import Verified, trust_store
from appliance.signing.trust_list import SUFFIX as LIST_SUFFIX
from appliance.signing.verification import verify_file


@click.group("pack")
def command() -> None:
    """List, show, verify, install, remove, sign and carry model packs."""


for _each in (keygen, sign, export, import_, diff, keys, revoke):
    command.add_command(_each)


@command.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the installed packs, broken ones included."""
    packs = _store(ctx).list()
    if as_json:
        print_json([_summary(pack) for pack in packs])
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
        print_json({**msgspec.to_builtins(pack.manifest), "directory": str(pack.directory)})
        return
    for title, text in _description(pack.manifest, pack.directory):
        click.echo(f"{title + ':':<14} {printable(text)}")


@command.command("verify")
@click.argument("packs", nargs=-1, metavar="[NAME|FILE|DIR]...")
@click.option(
    "--allow-unsigned", is_flag=True, help="Files need no signature; one that is there must be good."
)
@click.option(
    "--trust",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Trust the keys (*.pub) in this folder in place of the setting trust_dir.",
)
@click.option(
    "--tree",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Also compare this unpacked folder with the one system bundle that is given.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    packs: tuple[str, ...],
    allow_unsigned: bool,
    trust: Path | None,
    tree: Path | None,
    as_json: bool,
) -> None:
    """Compare every byte with the packs' manifests; without arguments, of all installed packs.

    An argument with a slash, or that ends in .tar.zst, is a file (a pack or a system bundle) or directory to
    check without installing: first its signature, by the trusted keys, then everything in it. Of a trust list
    (.trust.json) it says what it would do.
    """
    settings = settings_of(ctx, trust_dir=trust)
    if tree is not None and len(packs) != 1:
        raise click.BadParameter("it goes with one system bundle", param_hint="--tree")
    checking = _Checking(settings, allow_unsigned=allow_unsigned, tree=tree, quiet=as_json)
    results = [
        checking.result(pack)
        for pack in packs or [pack.name for pack in PackStore(settings.packs_dir).list()]
    ]
    if as_json:
        print_json(results)
    else:
        for result in results:
            click.echo(f"{result['pack']}: {printable(result['problem'] or checking.praise(result))}")
        if not results:
            click.echo("No packs are installed.")
    if any(result["problem"] for result in results):
        sys.exit(1)


@command.command("install")
@click.argument("source", metavar="FILE|DIR|URL")
@click.option(
    "--allow-unsigned", is_flag=True, help="Install without a signature, if you know where it comes from."
)
@json_option
@click.pass_context
def install(ctx: click.Context, source: str, allow_unsigned: bool, as_json: bool) -> None:
    """Check and install a pack's bundle (NAME.tar.zst with its .minisig); an older version is replaced.

    The signature must be of a trusted key. A directory (an unpacked pack) is for those who build packs: on a
    box it needs --allow-unsigned. A URL is fetched by the box itself, with the signature beside it, and only
    from networks that the setting egress_networks allows.
    """
    settings = settings_of(ctx)
    if not source.startswith(("http://", "https://")):
        if not Path(source).exists():
            raise click.BadParameter(f"there is no {source}", param_hint="source")
        source = str(Path(source).absolute())  # the service may have another working directory
    label = f"Installing {source.rsplit('/', 1)[-1]}"
    with reachable(settings, source) as path, progress_bar(label, quiet=as_json) as progress:
        arguments = {"source": path, "allow_unsigned": allow_unsigned}
        installed = run_command(settings, "pack.install", arguments, progress)
    if as_json:
        print_json(installed)
    else:
        signer = (
            f"signed by key {installed['signed_by']}" if installed["signed_by"] else "without a signature"
        )
        click.echo(f"Installed {installed['name']} {printable(installed['version'])}, {signer}.")


@command.command("remove")
@click.argument("name")
@json_option
@click.pass_context
def remove(ctx: click.Context, name: str, as_json: bool) -> None:
    """Remove an installed pack; a running service stops serving it."""
    removed = run_command(settings_of(ctx), "pack.remove", {"name": name})
    if as_json:
        print_json(removed)
    else:
        click.echo(f"Removed {name}.")


@command.command("archive")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"The file (default: NAME{SUFFIX}).")
@json_option
@click.pass_context
def archive(ctx: click.Context, name: str, output: Path | None, as_json: bool) -> None:
    """Write an installed pack as one plain archive, without manifest of a bundle (see export)."""
    target = output or Path(f"{name}{SUFFIX}")
    if target.is_dir():
        target /= f"{name}{SUFFIX}"
    with progress_bar(f"Writing {target.name}", quiet=as_json) as progress:
        _store(ctx).archive(name, target, progress)
    size = target.stat().st_size
    if as_json:
        print_json({"archive": str(target), "size": size})
    else:
        click.echo(f"Wrote {target} ({in_words(size)}).")


def _store(ctx: click.Context) -> PackStore:
    return PackStore(settings_of(ctx).packs_dir)


class _Checking:
    """What ``verify`` does with each of its arguments."""

    def __init__(self, settings: Settings, *, allow_unsigned: bool, tree: Path | None, quiet: bool) -> None:
        self._store = PackStore(settings.packs_dir)
        self._trust = trust_store(settings)
        self._allow_unsigned = allow_unsigned
        self._tree = tree
        self._quiet = quiet
        # What the trust lists among the arguments do.
        self._effects: dict[str, str] = {}

    def result(self, pack: str) -> dict[str, Any]:
        """Return the JSON-able outcome; ``signed_by`` is None for what is installed or has no signature."""
        with progress_bar(f"Verifying {pack}", quiet=self._quiet) as progress:
            try:
                if pack.endswith(LIST_SUFFIX):
                    return {"pack": pack, "problem": None, "signed_by": self._check_list(pack)}
                if "/" in pack or pack.endswith(SUFFIX):
                    verified = self._check(Path(pack), progress)
                    return {"pack": pack, "problem": None, "signed_by": verified and verified.key_id}
                self._store.verify(pack, progress)
            except ApplianceError as error:
                return {"pack": pack, "problem": error.message, "signed_by": None}
        return {"pack": pack, "problem": None, "signed_by": None}

    def praise(self, result: dict[str, Any]) -> str:
        """Say that all is well, and how far."""
        signed = f"whole, signed by key {result['signed_by']}" if result["signed_by"] else "whole"
        return signed + self._effects.get(result["pack"], "")

    def _check_list(self, pack: str) -> str:
        document = self._trust.check_list(Path(pack))
        revoked, brought = (
            [entry.key_id for entry in document.revoked],
            [key.id for key in document.new_keys()],
        )
        self._effects[pack] = f": revokes {ids(revoked)}, brings {ids(brought)}"
        return read_signature(Path(pack)).key_id

    def _check(self, path: Path, progress: Progress) -> Verified | None:
        if path.is_file() and _kind(path) == "system":
            verified = verify_file(path, self._trust, kind="system", progress=progress)
            manifest = check_bundle(path, verified, progress)
            if self._tree is not None:
                check_tree(manifest, self._tree)
            return verified
        if self._tree is not None:
            raise PackError(f"{path.name} is not a signed system bundle, which --tree needs")
        pack = verify_pack(
            path,
            self._trust,
            allow_unsigned=self._allow_unsigned or path.is_dir(),
            meter=Meter(progress),
        )
        check_pack(path, progress, reader=None if path.is_dir() else pack_reader(pack))
        return pack


def _kind(path: Path) -> str | None:
    """Return what the signature beside a file says that it is, not yet checked; None without one."""
    try:
        return parse_subject(read_signature(path).comment).kind
    except SigningError:
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
