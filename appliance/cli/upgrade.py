"""``appliance upgrade``: a signed release (or pack) in place of the present one, or the present one as before.

``--resume`` is what the unit runs before every start; ``--install`` is the first release of a box, for install.sh.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance.backup.restoring import settle_box
from appliance.backup.swap import acting_as_owner
from appliance.bundles.manifest import BundleManifest
from appliance.bundles.reader import check_bundle
from appliance.bundles.tree import check_tree
from appliance.cli import settings_of
from appliance.cli.output import progress_bar
from appliance.cli.pack_upgrade import is_pack, show_packs, upgrade_pack
from appliance.config import ConfigError, Settings, load_settings, loaded_file
from appliance.control.client import run_command
from appliance.control.errors import ControlError
from appliance.control.stores import exclusive_lock
from appliance.doctor.requirements import unmet
from appliance.errors import ApplianceError
from appliance.releases import snapshot, staging
from appliance.releases.errors import ReleaseError
from appliance.releases.journal import read_journal
from appliance.releases.layout import Layout, Release
from appliance.releases.manager import Systemd
from appliance.releases.switching import Box, ServiceState, recover, resume, switch
from appliance.releases.trial import rehearse
from appliance.signing.trust import trust_store

ANSWER_SECONDS = 60.0
# Room for the logs that the new release writes, and what a migration adds.
MOST_COPIES = 3

systemctl_option = click.option(
    "--systemctl", default="systemctl", hidden=True, help="The program that stops and starts the service."
)


@click.command("upgrade")
@click.argument("bundle", type=click.Path(path_type=Path), required=False, metavar="[FILE]")
@click.option("--dry-run", is_flag=True, help="Check the bundle and try it over a copy; switch nothing.")
@click.option("--status", is_flag=True, help="Say which releases are here and how the last switch went.")
@click.option(
    "--resume", "resume_", is_flag=True, help="Finish or undo an interrupted switch; run at every start."
)
@click.option(
    "--install", "tree", type=click.Path(path_type=Path), hidden=True, help="The first release: its tree."
)
@systemctl_option
@click.pass_context
def command(
    ctx: click.Context,
    bundle: Path | None,
    dry_run: bool,
    status: bool,
    resume_: bool,
    tree: Path | None,
    systemctl: str,
) -> None:
    """Take a signed release or model pack into use; when it does not work here, the present one runs again."""
    settings = settings_to_resume(ctx) if resume_ else settings_of(ctx)
    box = box_of(settings, systemctl)
    if resume_:
        done = resume(box)
        if done:
            click.echo(f"appliance: {done}", err=True)
        settle_restore(settings)
        return
    if status:
        show_status(box.layout)
        show_packs(settings)
        return
    if bundle is None:
        raise click.UsageError("name the bundle (NAME-VERSION-NUMBER.tar.zst)", ctx)
    if tree is not None:
        install_first(settings, box, bundle, tree, dry_run=dry_run)
        return
    with uninterrupted():
        if is_pack(bundle):
            require_data(settings)
            upgrade_pack(settings, box, bundle, dry_run=dry_run)
        else:
            upgrade(settings, box, bundle, dry_run=dry_run)


def settings_to_resume(ctx: click.Context) -> Settings:
    """Return the settings; where they cannot be read, those that an interrupted switch needs to be taken back.

    The program that resumes is the older one: a configuration that was written for the newer release meanwhile must
    not keep the box from coming back, and that of before is put in its place. Raises ConfigError when nothing was
    interrupted.
    """
    try:
        return settings_of(ctx)
    except ConfigError:
        settings = load_settings(config_file=Path(os.devnull))
        journal = read_journal(Layout(settings.releases_dir).journal_path)
        if journal is None or journal.phase == "done":
            raise
        return msgspec.structs.replace(settings, data_dir=Path(journal.data_dir))


def settle_restore(settings: Settings) -> None:
    """Clear up after a restore that was cut off, unless one is going on. Raises BackupError."""
    with suppress(ControlError):
        for before in settle_box(settings, exclusive_lock):
            click.echo(
                f"appliance: a restore was cut off at its end; the data of before lie in {before}", err=True
            )


def upgrade(settings: Settings, box: Box, bundle: Path, *, dry_run: bool) -> None:
    """Verify, stage, try over a copy, switch. Raises ReleaseError, SigningError, BundleError."""
    layout, trust = box.layout, trust_store(settings)
    require_data(settings)
    layout.require_installed()
    layout.make()
    with box.driving():
        recover(box)
        layout.sweep()
        with acting_as_owner(settings.data_dir):
            snapshot.clear(settings.data_dir)
        current = layout.current()
        with progress_bar("Verifying", quiet=False) as progress:
            verified, manifest = staging.verify(bundle, trust, progress)
        staging.refuse_unfit(manifest, current)
        require_machine(settings, manifest)
        was_there = layout.directory(manifest).exists()
        snapshot.require_room(settings.data_dir, MOST_COPIES)
        click.echo(f"{bundle.name}: signed by key {verified.key_id}.")
        with progress_bar("Unpacking", quiet=False) as progress:
            release = staging.unpack(layout, bundle, verified, progress)
        try:
            click.echo(f"Trying {release} over a copy of this box's data.")
            rehearse(release, settings.data_dir, settings.secret_path, lambda text: click.echo(f"  {text}"))
        except BaseException:
            if not was_there:
                layout.remove(release)
            raise
        if dry_run:
            if not was_there:
                layout.remove(release)
            click.echo(f"{release} would be taken into use.")
            return

        def accept() -> None:
            with acting_as_owner(settings.data_dir):
                trust.accept(verified)

        switch(box, "upgrade", current, release, accept)


def install_first(settings: Settings, box: Box, bundle: Path, tree: Path, *, dry_run: bool = False) -> None:
    """Make a release of the tree that install.sh unpacked, and the current one where there is none.

    Prints one word: ``installed``; ``present`` when it is the current one; ``upgrade`` when another one is;
    ``checked`` when nothing was to be done but that.
    """
    layout, trust = box.layout, trust_store(settings)
    # What runs here already is no step back, though a later one may have been accepted before a rollback.
    verified, manifest = staging.verify(bundle, trust, check_sequence=False)
    if layout.running() != manifest:
        trust.check_sequence(verified, verified.key_id)
    require_machine(settings, manifest)
    if dry_run:
        check_tree(check_bundle(bundle, verified), tree)
        click.echo("checked")
        return
    layout.make()
    with box.driving():
        recorded = settings.data_dir.is_dir()
        try:
            current: Release | None = layout.current()
        except ReleaseError:
            current = None
        if current is not None:
            click.echo("present" if current.sequence == manifest.sequence else "upgrade")
            return
        release = staging.adopt(layout, bundle, verified, tree)
        if recorded:
            with acting_as_owner(settings.data_dir):
                trust.accept(verified)
        layout.point(layout.keeper_link, release)
        layout.point(layout.current_link, release)
    click.echo("installed")


def box_of(settings: Settings, systemctl: str) -> Box:
    """Return the box of these settings."""
    layout = Layout(settings.releases_dir)
    return Box(
        layout=layout,
        data_dir=settings.data_dir,
        lock_file=settings.lock_path,
        configuration=loaded_file(),
        manager=Systemd(systemctl, layout.current_link / "systemd"),
        ask=lambda: ask(settings),
        lock=exclusive_lock,
        say=click.echo,
    )


def ask(settings: Settings) -> ServiceState:
    """Ask the running service about itself. Raises ControlError."""

    def nobody() -> Any:
        raise ControlError("the service does not run")

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)
    try:
        answer = run_command(settings, "service.state", {}, without_service=nobody)
        return msgspec.convert(answer, ServiceState)
    except (OSError, msgspec.MsgspecError) as error:
        raise ControlError(f"the service does not answer as it should: {error}") from error
    finally:
        socket.setdefaulttimeout(before)


def require_machine(settings: Settings, manifest: BundleManifest) -> None:
    """Raise ReleaseError where this machine is not what the release needs."""
    lacking = unmet(manifest.requires, settings.releases_dir)
    if lacking:
        raise ReleaseError(f"{manifest.name} {manifest.version} needs {'; '.join(lacking)}")


def require_data(settings: Settings) -> None:
    """Raise ReleaseError where no service ever ran."""
    if not settings.data_dir.is_dir():
        raise ReleaseError(f"there is no {settings.data_dir}: start the service once")


def show_status(layout: Layout) -> None:
    """Print the releases and the last switch."""
    current = layout.current()
    for release in layout.all():
        click.echo(f"{'*' if release == current else ' '} {release}  {release.directory}")
    journal = read_journal(layout.journal_path)
    if journal is not None:
        when = f"{datetime.fromtimestamp(journal.began / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        click.echo(f"Last {journal.kind}, {when}: {journal.outcome or f'going on ({journal.phase})'}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the switch outlive the terminal; a wish to end it leads back to the present release."""

    def end(_number: int, _frame: object) -> None:
        raise ApplianceError("it was told to end")

    # A file that is made here is root's, and for everybody to read: the service's user runs it.
    os.umask(0o022)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
