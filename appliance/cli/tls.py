"""``appliance tls``: what clients need to trust this box."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography.hazmat.primitives import serialization

from appliance.cli import settings_of
from appliance.control.client import run_command
from appliance.disk import write_new
from appliance.tls.authority import fingerprint_of
from appliance.tls.errors import TlsError
from appliance.tls.server import trusted_certificate


@click.group("tls")
def command() -> None:
    """Show and renew what clients need to trust this box."""


@command.command("fingerprint")
@click.pass_context
def fingerprint(ctx: click.Context) -> None:
    """Print the SHA-256 of the certificate that clients are to trust."""
    click.echo(fingerprint_of(trusted_certificate(settings_of(ctx))))


@command.command("export")
@click.option("--out", type=click.Path(path_type=Path), help="A new file to write it to.")
@click.pass_context
def export(ctx: click.Context, out: Path | None) -> None:
    """Print the certificate that clients are to trust (PEM, no key in it)."""
    settings = settings_of(ctx)
    certificate = trusted_certificate(settings)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    if out is None:
        click.echo(pem, nl=False)
        return
    try:
        write_new(out, [pem], 0o644)
    except OSError as error:
        raise TlsError(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"{out}: SHA-256 {fingerprint_of(certificate)}", err=True)


@command.command("renew")
@click.option("--authority", is_flag=True, help="Another authority, too: clients have to be given it.")
@click.pass_context
def renew(ctx: click.Context, authority: bool) -> None:
    """Make another certificate, now; the service shows it within half a minute."""
    renewed = run_command(settings_of(ctx), "tls.renew", {"authority": authority})
    click.echo(renewed["fingerprint"])
    click.echo("Clients are to trust the authority of this SHA-256: appliance tls export", err=True)
