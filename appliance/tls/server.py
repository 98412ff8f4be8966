"""The certificate that the service shows: kept valid, and fitting the box's names, while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.tls.authority import (
    EARLIEST,
    Authority,
    fingerprint_of,
    load_authority,
    make_authority,
    trusted_now,
)
from appliance.tls.errors import TlsError
from appliance.tls.files import read, write_private
from appliance.tls.names import Names, names_of_box

log = logging.getLogger(__name__)

RENEW_BEFORE = timedelta(days=60)
# Addresses come late at boot, and change: each look costs a millisecond.
CHECK_SECONDS = 30.0


class ServerTls:
    """The context of the service's connections, under its own authority or with the operator's files."""

    def __init__(self, settings: Settings, names: Callable[[], Names] | None = None) -> None:
        """Raise TlsError when there is no certificate to show. ``names`` replaces the box's own, for tests."""
        self._settings = settings
        self._names = names or (lambda: names_of_box(settings.tls_names))
        self._loaded: bytes | None = None
        self._left_out: Names | None = None
        self._said_of = b""
        self.context = server_context()
        self.refresh()

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what clients are to trust: the authority, or the operator's certificate."""
        return fingerprint_of(trusted_certificate(self._settings))

    def refresh(self) -> bool:
        """Make or read the certificate where another is due; return whether new connections get another.

        Raises TlsError; the one before is shown on.
        """
        if self._settings.tls == "files":
            chain, key = operator_files(self._settings)
            content = read(chain, "the certificate") + read(key, "its key")
        else:
            chain = key = self._settings.tls_dir / "server.pem"
            content = self._own(chain)
        if content == self._loaded:
            return False
        load_chain(self.context, chain, key)
        self._loaded = content
        return True

    async def keep(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if await asyncio.to_thread(self.refresh):
                    log.info("new connections get another certificate")
            except ApplianceError as error:
                log.error("the certificate stays as it is: %s", error.message)  # noqa: TRY400

    def _own(self, path: Path) -> bytes:
        """Return the certificate under the box's authority with its key; issue it where it is due."""
        names = self._names()
        authority = load_authority(self._settings.authority_path, names)
        covered = authority.covers(names)
        if covered != names and covered != self._left_out:
            missing = (set(names.dns) - set(covered.dns)) | {
                str(address) for address in set(names.addresses) - set(covered.addresses)
            }
            log.warning(
                "the box's authority may not certify %s: clients are refused there. Another authority, which "
                "clients have to be given: appliance tls renew --authority",
                ", ".join(sorted(missing)),
            )
            self._left_out = covered
        self._say_if_not_valid(authority)
        if path.exists():
            content = read(path, "the certificate")
            if still_good(content, authority, covered):
                return content
        if trusted_now() == EARLIEST:
            log.warning(
                "this machine's clock is wrong: set it, or clients will refuse the certificate in time"
            )
        content = authority.issue(covered)
        write_private(path, content)
        return content

    def _say_if_not_valid(self, authority: Authority) -> None:
        certificate, now = authority.certificate, trusted_now()
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begins <= now < ends - RENEW_BEFORE or authority.pem == self._said_of:
            return
        self._said_of = authority.pem
        log.warning(
            "the box's authority is valid from %s to %s, and the clock says %s: where that is right, clients need "
            "another one: appliance tls renew --authority",
            *(f"{each:%Y-%m-%d}" for each in (begins, ends, now)),
        )


def still_good(content: bytes, authority: Authority, names: Names) -> bool:
    """Tell whether a certificate is the authority's, for these names and addresses, valid, and far from its end."""
    try:
        certificate = x509.load_pem_x509_certificate(content)
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    dns = set(alternative.get_values_for_type(x509.DNSName))
    addresses = set(alternative.get_values_for_type(x509.IPAddress))
    now, end = trusted_now(), certificate.not_valid_after_utc
    return (
        dns == set(names.dns)
        # One address too many does no harm; addresses that come and go shall not make a new one each time.
        and addresses >= set(names.addresses)
        # Another one would not last longer than the authority.
        and (end - now > RENEW_BEFORE or end == authority.certificate.not_valid_after_utc)
        # One that was made while the clock was ahead begins too late; a clock that has lost the time cannot tell.
        and (certificate.not_valid_before_utc <= now or now == EARLIEST)
        and authority.issued(certificate)
    )


def server_context() -> ssl.SSLContext:
    """Return a context without a certificate: TLS 1.2 and later, HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def load_chain(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    """Have new connections get this certificate. Raises TlsError; nothing has changed then."""
    # Tried elsewhere first: a context that got half of a pair would serve nobody.
    for each in (server_context(), context):
        try:
            each.load_cert_chain(chain, key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise TlsError(f"the certificate {chain} with the key {key} cannot be used: {reason}") from error


def operator_files(settings: Settings) -> tuple[Path, Path]:
    """Return the operator's certificate and key. Raises TlsError when the settings name none."""
    if settings.tls_certificate is None or settings.tls_key is None:
        raise TlsError('tls = "files" needs tls_certificate and tls_key')
    return settings.tls_certificate, settings.tls_key


def trusted_certificate(settings: Settings) -> x509.Certificate:
    """Return what clients are to trust. Raises TlsError when there is none (yet)."""
    if settings.tls == "off":
        raise TlsError('TLS is off: set tls = "auto" or "files"')
    if settings.tls == "auto" and not settings.authority_path.exists():
        raise TlsError("the box has no authority yet: start the service once")
    path = settings.authority_path if settings.tls == "auto" else operator_files(settings)[0]
    try:
        return x509.load_pem_x509_certificate(read(path, "the certificate"))
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate: {error}") from error


def _no_password() -> str:
    raise ValueError("its key is encrypted; the service has nobody to ask for the password")


def renew(settings: Settings, *, authority: bool) -> str:
    """Let the box make another certificate, with ``authority`` under another authority; the service sees it soon.

    Returns the SHA-256 of the authority that clients are to trust. Raises TlsError.
    """
    names = names_of_box(settings.tls_names)
    if authority:
        return make_authority(settings.authority_path, names).fingerprint
    fingerprint = load_authority(settings.authority_path, names).fingerprint
    # The next look at it finds none and makes one.
    (settings.tls_dir / "server.pem").unlink(missing_ok=True)
    return fingerprint
