"""``appliance pack`` keygen, sign, keys and revoke: signing keys, and which of them count."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from appliance.bundles.manifest import BundleManifest
from appliance.bundles.packs import look
from appliance.cli import settings_of
from appliance.cli.output import json_option, print_json, printable, progress_bar
from appliance.disk import read_beginning
from appliance.signing.errors import SigningError
from appliance.signing.keys import (
    PUBLIC_SUFFIX,
    SECRET_SUFFIX,
    SecretKey,
    is_encrypted,
    read_public_key,
    read_secret_key,
    write_public_key,
    write_secret_key,
)
from appliance.signing.signatures import (
    MAX_SEQUENCE,
    Subject,
    sign_file,
    signature_path,
)
from appliance.signing.trust import trust_store
from appliance.signing.trust_list import SUFFIX as LIST_SUFFIX
from appliance.signing.trust_list import RevokedKey, TrustList, write_trust_list

# Bytes of a password file that are looked at.
LONGEST_PASSWORD = 4096

file_type = click.Path(path_type=Path, exists=True, dir_okay=False)
key_option = click.option("--key", "key_file", type=file_type, help="The secret key file to sign with.")
password_option = click.option(
    "--password-file", type=file_type, help="A file whose first line is the password."
)
sequence_option = click.option(
    "--sequence",
    type=click.IntRange(1, MAX_SEQUENCE),
    help="The number that only grows (default: the time in seconds).",
)


@click.command("keygen")
@click.argument("name", type=click.Path(path_type=Path), default=Path("appliance"))
@click.option(
    "--no-password", is_flag=True, help="Leave the secret key unencrypted; only for keys on guarded disks."
)
@password_option
@json_option
def keygen(name: Path, no_password: bool, password_file: Path | None, as_json: bool) -> None:
    """Make a signing key: NAME.pub to hand out, NAME.key to keep (minisign's formats)."""
    if not name.name:
        raise click.BadParameter("it names no file", param_hint="name")
    public, secret = (name.with_name(name.name + suffix) for suffix in (PUBLIC_SUFFIX, SECRET_SUFFIX))
    for path in (public, secret):
        if path.exists():
            raise SigningError("invalid_key", f"{path} is there already: a key is never overwritten")
    password = None if no_password else _password(password_file, confirm=True)
    if password == "":
        raise SigningError("invalid_key", "the password is empty: say --no-password if that is meant")
    key = SecretKey.generate()
    write_secret_key(secret, key, password)
    write_public_key(public, key.public)
    if as_json:
        print_json({"key_id": key.public.id, "public": str(public), "secret": str(secret)})
        return
    click.echo(f"Key {key.public.id}")
    click.echo(f"{public}: place it in trust.d on the boxes, or build it into releases.")
    click.echo(f"{secret}: keep it off the network, with a copy; whoever has it can sign for your boxes.")


@click.command("sign")
@click.argument("files", type=file_type, nargs=-1, required=True, metavar="FILE...")
@key_option
@password_option
@click.option(
    "--sequence", type=click.IntRange(1, MAX_SEQUENCE), help="For plain archives of packs, which have none."
)
@json_option
def sign(
    files: tuple[Path, ...],
    key_file: Path | None,
    password_file: Path | None,
    sequence: int | None,
    as_json: bool,
) -> None:
    """Sign bundles: writes FILE.minisig, which says what the bundle's own manifest says."""
    subjects = [_subject(path, sequence) for path in files]
    key = secret_key(key_file, password_file)
    signed = []
    for path, subject in zip(files, subjects, strict=True):
        with progress_bar(f"Signing {path.name}", quiet=as_json) as progress:
            beside = sign_file(path, key, subject, progress)
        signed.append({"file": str(path), "signature": str(beside), "comment": subject.comment()})
        if not as_json:
            click.echo(f"Wrote {beside} ({subject.comment()}).")
    if as_json:
        print_json(signed)


@click.command("keys")
@json_option
@click.pass_context
def keys(ctx: click.Context, as_json: bool) -> None:
    """List the signing keys that this box knows: from where, and which are revoked."""
    settings = settings_of(ctx)
    known = trust_store(settings).summary()
    if as_json:
        print_json(known)
        return
    for key in known:
        state = "trusted" if key["revoked"] is None else f"REVOKED ({printable(key['revoked'])})"
        click.echo(f"{key['key_id']}  {state}, from {key['source']}")
    if not known:
        click.echo(f"No signing key is trusted. Place public keys (*.pub) in {settings.trust_dir}.")


@click.command("revoke")
@click.argument("key_ids", nargs=-1, metavar="[KEY_ID]...")
@click.option("--reason", default="", help="Why, in a few words; boxes show it.")
@click.option(
    "--trust", "bring", type=file_type, multiple=True, help="A public key file to trust from now on."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help=f"The list (default: NUMBER{LIST_SUFFIX})."
)
@sequence_option
@key_option
@password_option
def revoke(
    key_ids: tuple[str, ...],
    reason: str,
    bring: tuple[Path, ...],
    output: Path | None,
    sequence: int | None,
    key_file: Path | None,
    password_file: Path | None,
) -> None:
    """Write a signed trust list that revokes keys and brings new ones; boxes take it by 'pack import'."""
    for key_id in key_ids:
        if not re.fullmatch("[0-9A-F]{16}", key_id.upper()):
            raise SigningError(
                "invalid_key", f"{key_id} is not valid as a key's id: it has 16 of 0-9 and A-F"
            )
    number = int(time.time()) if sequence is None else sequence
    document = TrustList(
        sequence=number,
        created=int(time.time()),
        revoked=tuple(RevokedKey(key_id=key_id.upper(), reason=reason) for key_id in key_ids),
        trusted=tuple(read_public_key(path).line() for path in bring),
    )
    target = output or Path(f"{number}{LIST_SUFFIX}")
    if not target.name.endswith(LIST_SUFFIX):
        raise click.BadParameter(f"a trust list's name ends in {LIST_SUFFIX}", param_hint="--output")
    write_trust_list(target, document, secret_key(key_file, password_file))
    click.echo(
        f"Wrote {target} and {signature_path(target).name}: carry both, appliance pack import {target.name}"
    )


def _password(file: Path | None, *, confirm: bool = False) -> str:
    if file is not None:
        try:
            return read_beginning(file, LONGEST_PASSWORD).decode().split("\n", 1)[0]
        except (OSError, UnicodeDecodeError) as error:
            raise SigningError("invalid_key", f"cannot read a password from {file}: {error}") from error
    return str(click.prompt("Password of the key", hide_input=True, confirmation_prompt=confirm, err=True))


def secret_key(key_file: Path | None, password_file: Path | None) -> SecretKey:
    """Return the key to sign with, asking for its password where needed. Raises SigningError."""
    if key_file is None:
        raise click.UsageError("--key is missing: the secret key file to sign with")
    return read_secret_key(key_file, _password(password_file) if is_encrypted(key_file) else None)


def _subject(path: Path, sequence: int | None) -> Subject:
    """Return what the signature of our own bundle has to say: what is in its manifest."""
    manifest = look(path, None)
    if isinstance(manifest, BundleManifest):
        if sequence not in (None, manifest.sequence):
            raise click.BadParameter(
                f"{path.name} says itself that it is number {manifest.sequence}", param_hint="--sequence"
            )
        return manifest.subject
    if sequence is None:
        raise click.BadParameter(
            f"{path.name} is a plain archive, which has no number: give one, or use export",
            param_hint="--sequence",
        )
    return Subject(name=manifest.name, sequence=sequence, kind="pack")
