"""``appliance backup``: make, list, verify, restore and try backups.

Exit status: 0 when all is well, 1 when something failed or a backup is not whole, 2 for a wrong call.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from appliance.backup.archive import check_archive
from appliance.backup.copies import read_secret
from appliance.backup.creation import Created
from appliance.backup.drill import drill, one_drill
from appliance.backup.errors import BackupError, refusal
from appliance.backup.keys import (
    Identity,
    box_identity,
    new_identity,
    parse_recipient,
    public_text,
    read_identities,
    secret_text,
)
from appliance.backup.record import DrillRecord, read_drill, write_drill
from appliance.backup.restoring import Restored, restore_box, restore_folder
from appliance.backup.shelf import Shelf
from appliance.cli import settings_of
from appliance.cli.output import json_option
from appliance.clock import now_ms
from appliance.config import Settings
from appliance.control.client import run_command
from appliance.control.errors import ControlError
from appliance.control.stores import exclusive_lock
from appliance.disk import sync_directory, write_new
from appliance.errors import ApplianceError
from appliance.releases.restoring import keep_restored, require_no_switch

identity_option = click.option(
    "--identity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The secret key that opens it (backup keygen); a box opens its own without.",
)
secret_option = click.option(
    "--secret",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The secret.key of the box that made it, for a backup without one.",
)


@click.group("backup")
def command() -> None:
    """Make, list, verify, restore and try backups of the box."""


@command.command("create")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", help="Put a further copy there.")
@click.option("--encrypt-to", metavar="PUBKEY", help="The public key (age1…) that it is encrypted to.")
@json_option
@click.pass_context
def create(ctx: click.Context, to: Path | None, encrypt_to: str | None, as_json: bool) -> None:
    """Make a backup, while the service serves or without it."""
    settings = settings_of(ctx)
    if encrypt_to is not None:
        parse_recipient(encrypt_to)
    if to is not None and not to.is_dir():
        raise BackupError(f"there is no folder {to}", status=404)
    rights = os.geteuid(), os.getegid()
    answer = run_command(settings, "backup.create", {"encrypt_to": encrypt_to})
    made = msgspec.convert(answer, Created)
    if os.geteuid() != rights[0]:  # without a service, root has become the owner of the data
        os.seteuid(rights[0])
        os.setegid(rights[1])
    copied = None if to is None else copy_to(Path(made.path), to)
    if as_json:
        click.echo(json.dumps({**answer, "copy": None if copied is None else str(copied)}, indent=2))
        return
    click.echo(f"{made.path} ({made.size:,} bytes{', encrypted' if made.encrypted else ''}), whole.")
    if not made.has_secret:
        click.echo(
            "It is not encrypted, so the box's secret is NOT in it: without secret.key no key would be valid after "
            "a restore elsewhere. Keep a copy of that, or encrypt backups (backup_recipient, --encrypt-to)."
        )
    if copied is not None:
        click.echo(f"Copied to {copied}, and read back.")
    for name in made.removed:
        click.echo(f"Removed by the rule of days and weeks: {name}")


def copy_to(file: Path, folder: Path) -> Path:
    """Copy a backup into a folder, where it appears whole; returns it. Raises BackupError."""
    target = folder / file.name
    temporary = folder / f".{file.name}.{secrets.token_hex(4)}.partial"
    try:
        try:
            # Where the backup is not encrypted, everybody's usage and password hashes are in it.
            with file.open("rb") as source:
                write_new(temporary, iter(lambda: source.read(1 << 20), b""), 0o600)
            if _sha256(temporary) != _sha256(file):
                raise BackupError(
                    f"the copy in {folder} is not what was written: is that disk broken?", status=500
                )
            temporary.rename(target)
            sync_directory(folder)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(error, f"copy the backup to {folder}; it is whole in {file.parent}") from error
    return target


@command.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the backups on this box, newest first, and the last drill."""
    settings = settings_of(ctx)
    backups, last = Shelf(settings.backups_path).backups(), read_drill(settings.drill_path)
    if as_json:
        click.echo(
            json.dumps(
                {"backups": msgspec.to_builtins(backups), "drill": msgspec.to_builtins(last)}, indent=2
            )
        )
        return
    if not backups:
        click.echo(f"There are no backups in {settings.backups_path}. Make one: appliance backup create")
    for each in backups:
        kind = "encrypted" if each.encrypted else "without the secret"
        click.echo(f"{_time(each.created)}  {each.size:>14,} bytes  {kind:<18}  {each.name}")
    if last is not None:
        click.echo(f"Last drill: {_time(last.at)}, {last.problem or 'went well'} ({last.backup})")


@command.command("verify")
@click.argument("file")
@identity_option
@json_option
@click.pass_context
def verify(ctx: click.Context, file: str, identity: Path | None, as_json: bool) -> None:
    """Compare every byte of a backup with its manifest. FILE is a path, or a name that list shows."""
    settings = settings_of(ctx)
    path = Shelf(settings.backups_path).find(file)
    try:
        with path.open("rb") as opened:
            manifest = check_archive(opened, identities_for(settings, identity))
    except OSError as error:
        raise refusal(error, f"read {path}") from error
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(manifest), indent=2))
        return
    click.echo(f"{path.name}: whole. Made {_time(manifest.created)} by release {manifest.version}.")
    for entry in manifest.files:
        click.echo(f"  {entry.path:<24} {entry.size:>14,} bytes  {entry.sha256}")
    click.echo(f"  audit head {manifest.audit_head}")
    click.echo(
        f"  packs      {', '.join(pack.name for pack in manifest.packs) or 'none'} (their weights are not in it)"
    )


@command.command("restore")
@click.argument("file")
@click.option(
    "--into", type=click.Path(path_type=Path), metavar="DIR", help="A new folder, in place of the box's data."
)
@identity_option
@secret_option
@click.pass_context
def restore(
    ctx: click.Context, file: str, into: Path | None, identity: Path | None, secret: Path | None
) -> None:
    """Restore a backup in place of the box's data (stop the service first; they are kept), or into a folder."""
    settings = settings_of(ctx)
    path = Shelf(settings.backups_path).find(file)
    identities = identities_for(settings, identity)
    given = None if secret is None else _given_secret(secret)

    @contextmanager
    def lock(path: Path) -> Iterator[None]:
        with exclusive_lock(path):
            require_no_switch(settings.releases_dir, settings.data_dir)
            yield
            # Not earlier: a restore that is refused leaves things as they are.
            keep_restored(settings.releases_dir, settings.data_dir)

    try:
        with path.open("rb") as opened:
            if into is not None:
                restored = restore_folder(into.absolute(), opened, identities, given)
            else:
                require_no_switch(settings.releases_dir, settings.data_dir)
                restored = restore_box(settings, opened, identities, lock, secret=given)
    except ControlError as error:
        raise BackupError(
            f"the data in {settings.data_dir} are in use: stop the service first (systemctl stop appliance), or "
            "restore into a folder (--into DIR)",
            status=409,
        ) from error
    except OSError as error:
        raise refusal(error, f"read {path}") from error
    for line in in_words(restored):
        click.echo(line)


def in_words(restored: Restored) -> list[str]:
    """Return what was restored, and what is left to do."""
    manifest = restored.manifest
    lines = [f"{restored.directory} is as it was on {_time(manifest.created)} (release {manifest.version})."]
    if restored.before is not None:
        lines.append(
            f"What was there before lies in {restored.before}; remove it when you no longer need it."
        )
    if restored.audit is None:
        lines.append(
            "The secret is not in this backup: put the box's secret.key beside the store before using it."
        )
    elif restored.audit["whole"]:
        lines.append(f"The audit log is whole up to {restored.audit['head']}.")
    else:
        lines.append(
            f"The audit log was NOT whole when it was backed up: {restored.audit['broken']['message']}"
        )
    if restored.missing_packs:
        lines.append(f"Packs to install again (appliance pack install): {', '.join(restored.missing_packs)}")
    if restored.configuration is not None:
        lines.append(
            f"The configuration of then is {restored.configuration}; the present one was not touched."
        )
    return lines


@command.command("drill")
@click.argument("file", required=False)
@identity_option
@click.pass_context
def drill_(ctx: click.Context, file: str | None, identity: Path | None) -> None:
    """Try a backup (the newest): restore a copy, boot it on a loopback port, log in and ask it."""
    settings = settings_of(ctx)
    shelf = Shelf(settings.backups_path)
    newest = shelf.newest()
    if file is None and newest is None:
        raise BackupError("there is no backup to try; make one: appliance backup create", status=404)
    path = shelf.find(file or (newest.name if newest else ""))
    identities = identities_for(settings, identity)
    try:
        # Opened as whoever runs this; what follows is done as the owner of the data.
        with path.open("rb") as opened:
            drop_to_owner(settings.data_dir)
            with one_drill(settings.data_dir):
                recorded(
                    settings,
                    path.name,
                    lambda: drill(settings, opened, identities, lambda text: click.echo(f"  {text}")),
                )
    except OSError as error:
        raise refusal(error, f"try {path}") from error
    click.echo(f"{path.name} can be restored.")


def recorded(settings: Settings, name: str, try_it: Callable[[], object]) -> None:
    """Run a drill and write down how it went. Raises what it raises."""
    before = read_drill(settings.drill_path)
    good_at = None if before is None else before.good_at
    problem: str | None = None
    try:
        try_it()
        good_at = now_ms()
    except ApplianceError as error:
        problem = error.message
        raise
    finally:
        record = DrillRecord(at=now_ms(), good_at=good_at, backup=name, problem=problem)
        write_drill(settings.drill_path, record)


def drop_to_owner(directory: Path) -> None:
    """As root, become the owner of the data for good: programs that are started must not be root's."""
    status = directory.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        return
    os.setgroups([status.st_gid])
    os.setgid(status.st_gid)
    os.setuid(status.st_uid)


@command.command("keygen")
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Make a pair of keys: the secret one into FILE, to be kept away from the box; the public one is printed."""
    identity = new_identity()
    public = public_text(identity.public_key())
    text = (
        "# Opens the backups that are encrypted to the public key below. Keep it away from the box.\n"
        f"# public key: {public}\n{secret_text(identity)}\n"
    )
    try:
        write_new(file, [text.encode()], 0o600)
    except FileExistsError:
        raise BackupError(f"{file} is there already, and may be the only key of some backup") from None
    except OSError as error:
        raise refusal(error, f"write {file}") from error
    click.echo(public)
    click.echo(f'The secret key is in {file}. On the box: backup_recipient = "{public}"', err=True)


def identities_for(settings: Settings, file: Path | None) -> list[Identity]:
    """Return the keys to open a backup with: those in ``file``, and the box's own. Raises BackupError."""
    given = [] if file is None else read_identities(file)
    try:
        secret = read_secret(settings.secret_path)
    except (OSError, BackupError):
        secret = None
    return given + ([] if secret is None else [box_identity(secret)])


def _given_secret(path: Path) -> bytes:
    try:
        secret = read_secret(path)
    except OSError as error:
        raise refusal(error, f"read {path}") from error
    if secret is None:
        raise BackupError(f"there is no file {path}", status=404)
    return secret


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _time(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
