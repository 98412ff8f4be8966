"""The box's own authority: made at first boot, it signs the box's certificates and nothing else.

It is bound (by name constraints) to private networks, to the names that the box had when it was made, and to names
that the public cannot have: whoever steals its key cannot pass for the rest of the world to those who trust it.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.tls.errors import TlsError
from appliance.tls.files import read, write_private
from appliance.tls.names import Address, Names

AUTHORITY_DAYS = 3653
# Apple's clients take no longer ones than 825 days; browsers are about to want less.
SERVER_DAYS = 397
# A clock that says an earlier day is wrong: the battery of its machine is empty.
EARLIEST = datetime(2026, 11, 1, tzinfo=UTC)
# Clients whose clocks are slow take it too.
SLOW_CLOCKS = timedelta(days=2)

PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10"),
        *("fc00::/7", "fe80::/10", "::1/128"),
    )
)
# Names of networks of one's own (RFC 6762, 8375, and what is reserved or usual), with all below them.
PRIVATE_DOMAINS = ("localhost", "local", "lan", "internal", "intranet", "home.arpa", "test")

_PRIVATE_FORM = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


class Authority:
    """A certificate that signs, with its key. Load it with ``load_authority``."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @property
    def pem(self) -> bytes:
        """The certificate that clients are to trust, without the key."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate, as clients show it."""
        return fingerprint_of(self.certificate)

    def covers(self, names: Names) -> Names:
        """Return those of the names that this authority may certify."""
        constraints = _constraints(self.certificate)
        dns = tuple(name for name in names.dns if _permits_name(constraints, name))
        addresses = tuple(address for address in names.addresses if _permits_address(constraints, address))
        return Names(dns, addresses)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Tell whether this authority signed a certificate."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def issue(self, names: Names) -> bytes:
        """Return a new key and a certificate for the names, as PEM: key, certificate, authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = trusted_now()
        end = min(now + timedelta(days=SERVER_DAYS), self.certificate.not_valid_after_utc)
        common = next((name for name in names.dns if name != "localhost" and "*" not in name), "localhost")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_named(common[:64]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # The end where a clock is far ahead: the authority has ended by it, but the box is to start.
            .not_valid_before(min(now, end) - SLOW_CLOCKS)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return (
            key.private_bytes(*_PRIVATE_FORM)
            + certificate.public_bytes(serialization.Encoding.PEM)
            + self.pem
        )


def load_authority(path: Path, names: Names) -> Authority:
    """Return the authority in a file, made first when there is none. Raises TlsError."""
    return read_authority(path) if path.exists() else make_authority(path, names)


def read_authority(path: Path) -> Authority:
    """Return the authority in a file. Raises TlsError."""
    content = read(path, "the authority")
    try:
        certificate = x509.load_pem_x509_certificate(content)
        key = serialization.load_pem_private_key(content, password=None)
    except ValueError as error:
        raise TlsError(f"the authority {path} is damaged ({error}): restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise TlsError(f"the authority {path} is damaged (its key is another's): restore it from a backup")
    return Authority(certificate, key)


def make_authority(path: Path, names: Names) -> Authority:
    """Make an authority for a box of these names in the place of ``path`` (key and certificate in one file).

    Raises TlsError.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = trusted_now()
    # Two boxes of one name are two authorities: clients look an issuer up by its name.
    mark = secrets.token_hex(3)
    name = _named(f"appliance {socket_name(names)} {mark}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLOW_CLOCKS)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.NameConstraints(permitted_subtrees=_permitted(names), excluded_subtrees=None), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    made = Authority(certificate, key)
    write_private(path, key.private_bytes(*_PRIVATE_FORM) + made.pem)
    return made


def trusted_now() -> datetime:
    """Return the time, at least as late as this program is old: some boxes wake up in 1970."""
    return max(datetime.now(UTC), EARLIEST).replace(microsecond=0)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate as pairs of capital digits with colons."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def socket_name(names: Names) -> str:
    """Return the name of the box among its names."""
    plain = [name for name in names.dns if name != "localhost" and "*" not in name]
    return min(plain, key=len)[:40] if plain else "box"


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Names) -> list[x509.GeneralName]:
    dns: list[x509.GeneralName] = [x509.DNSName(name) for name in names.dns]
    return dns + [x509.IPAddress(address) for address in names.addresses]


def _permitted(names: Names) -> list[x509.GeneralName]:
    domains = dict.fromkeys((*PRIVATE_DOMAINS, *(name.removeprefix("*.") for name in names.dns)))
    further = [
        ipaddress.ip_network(address) for address in names.addresses if not _within(address, PRIVATE_NETWORKS)
    ]
    subtrees: list[x509.GeneralName] = [x509.DNSName(domain) for domain in domains]
    return subtrees + [x509.IPAddress(network) for network in (*PRIVATE_NETWORKS, *further)]


def _constraints(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return []
    return list(extension.value.permitted_subtrees or ())


def _permits_name(permitted: list[x509.GeneralName], name: str) -> bool:
    domains = [each.value for each in permitted if isinstance(each, x509.DNSName)]
    plain = name.removeprefix("*.")
    return not domains or any(plain == domain or plain.endswith(f".{domain}") for domain in domains)


def _permits_address(permitted: list[x509.GeneralName], address: Address) -> bool:
    networks = [each.value for each in permitted if isinstance(each, x509.IPAddress)]
    return not networks or _within(address, networks)


def _within(address: Address, networks: Iterable[object]) -> bool:
    return any(
        address in network
        for network in networks
        if isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)
        and network.version == address.version
    )
