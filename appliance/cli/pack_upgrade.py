"""``appliance upgrade PACK`` and ``appliance rollback PACK``: another version, with the present one as the way back.

As with a release: verified, tried apart, switched to in one step, asked whether it works, back by itself when it does
not. The way back is the version before, which the store of packs keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from appliance.backup.swap import acting_as_owner
from appliance.bundles.manifest import BundleManifest
from appliance.bundles.packs import look, pack_reader
from appliance.cli.output import printable, progress_bar
from appliance.cli.pack_source import keeping_user, reachable
from appliance.config import Settings
from appliance.control.client import run_command
from appliance.disk import remove
from appliance.doctor.requirements import unmet
from appliance.frozen import executable
from appliance.packs.errors import PackNotFoundError
from appliance.packs.manifest import Manifest
from appliance.packs.store import PackStore
from appliance.releases import snapshot
from appliance.releases.errors import ReleaseError
from appliance.releases.switching import Box, recover
from appliance.releases.trial import smoke
from appliance.signing.errors import SigningError
from appliance.signing.signatures import parse_subject, read_signature
from appliance.signing.trust import trust_store
from appliance.signing.verification import verify_file


def is_pack(bundle: Path) -> bool:
    """Tell whether the signature beside a file says that it is a pack; nothing is verified yet."""
    try:
        return parse_subject(read_signature(bundle).comment).kind == "pack"
    except SigningError:
        return False


def upgrade_pack(settings: Settings, box: Box, bundle: Path, *, dry_run: bool) -> None:
    """Verify a pack's bundle, run its smoke test apart, install it, and see it loaded.

    Raises SigningError, BundleError, PackError, ReleaseError; ControlError when it did not load and the version
    before serves again.
    """
    with _alone(settings, box), reachable(settings, str(bundle.absolute())) as source:
        path = Path(source)
        with progress_bar("Verifying", quiet=False) as progress:
            verified = verify_file(path, trust_store(settings), kind="pack", progress=progress)
        _require_machine(settings, look(path, verified))
        before = _installed(settings, verified.name)
        click.echo(f"{bundle.name}: signed by key {verified.key_id}.")
        copy = settings.data_dir / snapshot.new_name(snapshot.TRIAL)
        try:
            with acting_as_owner(settings.data_dir), progress_bar("Unpacking", quiet=False) as progress:
                copy.mkdir(mode=0o700)
                trial = PackStore(copy / "packs")
                manifest = trial.install(path, progress, reader=pack_reader(verified))
            if manifest == before:
                click.echo(f"{_title(manifest)} is what this box has already.")
                return
            click.echo(f"Trying {_title(manifest)} by itself.")
            smoke(
                executable(),
                _title(manifest),
                copy,
                ["--packs", str(trial.path)],
                lambda text: click.echo(f"  {text}"),
            )
        finally:
            with acting_as_owner(settings.data_dir):
                remove(copy)
        if dry_run:
            click.echo(f"{_title(manifest)} would be taken into use.")
            return
        with progress_bar(f"Installing {bundle.name}", quiet=False) as progress, keeping_user():
            run_command(settings, "pack.install", {"source": source}, progress)
    way_back = f" The way back: appliance rollback {manifest.name}" if before is not None else ""
    click.echo(f"{_title(manifest)} is in use.{way_back}")


def roll_pack_back(settings: Settings, box: Box, name: str) -> None:
    """Use the version of a pack again that was there before. Raises PackError, ControlError."""
    with _alone(settings, box), keeping_user():
        found = run_command(settings, "pack.rollback", {"name": name})
    click.echo(f"{name} {printable(found['version'])} is in use again. Once more leads back.")


def show_packs(settings: Settings) -> None:
    """Print the packs that have a version to go back to."""
    packs = PackStore(settings.packs_dir)
    for pack in packs.list():
        former = packs.former(pack.name)
        if pack.manifest is not None and former is not None:
            click.echo(f"  {_title(pack.manifest)}, before it {printable(former.version)}")


@contextmanager
def _alone(settings: Settings, box: Box) -> Iterator[None]:
    """Let no switch of releases go on meanwhile, where there are releases, and clear up after what was cut off."""
    with ExitStack() as held:
        if box.layout.releases.is_dir():
            held.enter_context(box.driving())
            recover(box)
        with acting_as_owner(settings.data_dir):
            snapshot.clear(settings.data_dir)
        yield


def _require_machine(settings: Settings, manifest: BundleManifest | Manifest) -> None:
    lacking = unmet(manifest.requires, settings.data_dir) if isinstance(manifest, BundleManifest) else []
    if lacking:
        raise ReleaseError(f"{manifest.name} {printable(manifest.version)} needs {'; '.join(lacking)}")


def _installed(settings: Settings, name: str) -> Manifest | None:
    """Return the manifest of the present version; None without one, or one that is broken."""
    try:
        return PackStore(settings.packs_dir).get(name).manifest
    except PackNotFoundError:
        return None


def _title(manifest: Manifest) -> str:
    return f"{manifest.name} {printable(manifest.version)}"
