"""The box's own authority: whole or not there, and of no use against the rest of the world."""

from __future__ import annotations

import ipaddress
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from appliance.tls.authority import EARLIEST, Authority, load_authority, make_authority, read_authority
from appliance.tls.errors import TlsError
from appliance.tls.names import Names, names_of_box
from tests.tls import openssl_verifies

NAMES = Names(("box", "box.local", "localhost"), (ipaddress.ip_address("192.168.7.9"),))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path / "tls/authority.pem", NAMES)


def test_it_lasts_ten_years_and_signs_certificates_only(authority: Authority) -> None:
    certificate = authority.certificate
    assert certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3650)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature


def test_its_file_is_its_owners_only_and_is_read_again(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "tls/authority.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_authority(path, NAMES).fingerprint == authority.fingerprint
    assert [each.name for each in path.parent.iterdir()] == ["authority.pem"]


def test_what_a_crash_left_of_a_new_one_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / ".authority.pem.new").write_bytes(b"half a k")
    made = load_authority(tmp_path / "authority.pem", NAMES)
    assert read_authority(tmp_path / "authority.pem").fingerprint == made.fingerprint


def test_the_exported_certificate_has_no_key(authority: Authority) -> None:
    assert b"PRIVATE" not in authority.pem
    assert authority.pem.count(b"BEGIN") == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_one_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "authority.pem"
    path.write_bytes(content)
    with pytest.raises(TlsError, match="damaged"):
        load_authority(path, NAMES)
    assert path.read_bytes() == content


def test_a_key_of_another_is_refused(tmp_path: Path, authority: Authority) -> None:
    other = tmp_path / "other.pem"
    make_authority(other, NAMES)
    key = other.read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    other.write_bytes(key + authority.pem)
    with pytest.raises(TlsError, match="key is another's"):
        read_authority(other)


def test_its_certificates_are_for_servers_and_verify(authority: Authority) -> None:
    issued = x509.load_pem_x509_certificates(authority.issue(NAMES))[0]
    assert authority.issued(issued)
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert issued.not_valid_after_utc - issued.not_valid_before_utc < timedelta(days=825)
    for subject in (x509.DNSName("box.local"), x509.IPAddress(NAMES.addresses[0])):
        store = Store([authority.certificate])
        PolicyBuilder().store(store).build_server_verifier(subject).verify(issued, [])


@pytest.mark.parametrize(
    ("names", "good"),
    [
        (Names(("box",), ()), True),
        (Names(("other.lan",), ()), True),
        (Names((), (ipaddress.ip_address("10.1.2.3"),)), True),
        (Names(("bank.example.com",), ()), False),
        (Names((), (ipaddress.ip_address("8.8.8.8"),)), False),
        (Names((), (ipaddress.ip_address("2001:db8::1"),)), False),
    ],
)
def test_whoever_steals_it_cannot_pass_for_the_rest_of_the_world(
    authority: Authority, names: Names, good: bool, tmp_path: Path
) -> None:
    # It signs whatever its key is made to sign; clients refuse it.
    content = authority.issue(names)
    assert (authority.covers(names) == names) is good
    assert openssl_verifies(authority.pem, content, tmp_path) is good


def test_names_that_the_box_had_when_it_was_made_are_allowed(tmp_path: Path) -> None:
    names = Names(("ai.example.com", "*.ai.example.com"), (ipaddress.ip_address("203.0.113.5"),))
    made = make_authority(tmp_path / "authority.pem", names)
    assert made.covers(names) == names
    assert openssl_verifies(made.pem, made.issue(names), tmp_path)


def test_a_clock_that_stands_in_1970_makes_no_certificate_that_has_ended(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return datetime(1970, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("appliance.tls.authority.datetime", Early)
    issued = x509.load_pem_x509_certificates(authority.issue(NAMES))[0]
    assert issued.not_valid_after_utc > EARLIEST + timedelta(days=300)


def test_a_certificate_of_another_authority_is_not_its_own(tmp_path: Path, authority: Authority) -> None:
    other = make_authority(tmp_path / "other.pem", NAMES)
    assert not authority.issued(x509.load_pem_x509_certificates(other.issue(NAMES))[0])
    with pytest.raises(VerificationError):
        PolicyBuilder().store(Store([authority.certificate])).build_server_verifier(
            x509.DNSName("box")
        ).verify(x509.load_pem_x509_certificates(other.issue(NAMES))[0], [])


def test_the_names_of_this_box_are_found_without_a_look_up() -> None:
    names = names_of_box(["AI.example.lan.", "*.ai.example.lan", "192.0.2.7", "2001:db8::7"])
    assert {"localhost", "ai.example.lan", "*.ai.example.lan"} <= set(names.dns)
    shown = {str(address) for address in names.addresses}
    assert {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"} <= shown
    assert not any(address.is_link_local for address in names.addresses)


@pytest.mark.parametrize("name", ["", "a b", "-x.lan", "x..lan", "a" * 64, "*.*.lan", "http://box"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(TlsError, match="tls_names"):
        names_of_box([name])


def test_the_keys_are_of_a_kind_that_every_client_takes(authority: Authority) -> None:
    key = serialization.load_pem_private_key(authority.issue(NAMES), None)
    assert getattr(key, "curve").name == "secp256r1"  # noqa: B009 - of a union of key types
