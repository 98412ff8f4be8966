"""The certificate that the service shows: made, kept, renewed and replaced without a restart."""

from __future__ import annotations

import ipaddress
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from appliance.config import ConfigError, Settings, load_settings
from appliance.tls import authority as authority_module
from appliance.tls import server as server_module
from appliance.tls.authority import make_authority
from appliance.tls.errors import TlsError
from appliance.tls.names import Names
from appliance.tls.server import ServerTls, trusted_certificate

HOME = ipaddress.ip_address("192.168.7.9")
OTHER = ipaddress.ip_address("10.0.0.5")
NAMES = Names(("box", "localhost"), (HOME,))


def shown(settings: Settings) -> x509.Certificate:
    return x509.load_pem_x509_certificates((settings.tls_dir / "server.pem").read_bytes())[0]


def operator(folder: Path, name: str = "ai.example.com") -> Settings:
    """Return settings with an operator's certificate and key."""
    names = Names((name,), ())
    content = make_authority(folder / "ca.pem", names).issue(names)
    key, begin, chain = content.partition(b"-----BEGIN CERTIFICATE")
    (folder / "chain.pem").write_bytes(begin + chain)
    (folder / "key.pem").write_bytes(key)
    return Settings(
        data_dir=folder, tls="files", tls_certificate=folder / "chain.pem", tls_key=folder / "key.pem"
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, tls="auto")


def test_a_first_start_makes_it_and_the_next_keeps_it(settings: Settings) -> None:
    first = ServerTls(settings, lambda: NAMES)
    before = shown(settings)
    second = ServerTls(settings, lambda: NAMES)

    assert first.fingerprint == second.fingerprint
    assert shown(settings) == before
    assert not second.refresh()
    assert stat.S_IMODE((settings.tls_dir / "server.pem").stat().st_mode) == 0o600
    assert trusted_certificate(settings).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_another_address_gets_another_certificate_and_one_less_does_not(settings: Settings) -> None:
    addresses = [HOME]
    tls = ServerTls(settings, lambda: Names(NAMES.dns, tuple(addresses)))
    trusted = tls.fingerprint
    addresses.append(OTHER)
    assert tls.refresh()
    names = shown(settings).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [HOME, OTHER]
    addresses.remove(HOME)
    assert not tls.refresh()
    assert tls.fingerprint == trusted


def test_it_is_renewed_before_it_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ServerTls(settings, lambda: NAMES)
    before, trusted = shown(settings), tls.fingerprint
    now = authority_module.trusted_now()
    for days, due in ((330, False), (345, True)):
        for module in (server_module, authority_module):
            monkeypatch.setattr(module, "trusted_now", lambda: now + timedelta(days=days))  # noqa: B023
        assert tls.refresh() is due
    assert shown(settings).not_valid_after_utc > before.not_valid_after_utc
    assert tls.fingerprint == trusted


def test_what_was_made_while_the_clock_was_ahead_is_made_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = authority_module.trusted_now()
    make_authority(settings.authority_path, NAMES)
    with monkeypatch.context() as patch:
        for module in (server_module, authority_module):
            patch.setattr(module, "trusted_now", lambda: now + timedelta(days=200))
        tls = ServerTls(settings, lambda: NAMES)
    assert tls.refresh()
    assert shown(settings).not_valid_before_utc <= now
    assert not tls.refresh()
    assert "tls renew --authority" not in caplog.text


def test_a_clock_that_has_lost_the_time_takes_no_good_certificate_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients know the time: what was made for it must not give way to what ended years ago."""
    for now in (authority_module.EARLIEST + timedelta(days=1000), authority_module.EARLIEST):
        for module in (server_module, authority_module):
            monkeypatch.setattr(module, "trusted_now", lambda now=now: now)
        ServerTls(settings, lambda: NAMES)
    assert shown(settings).not_valid_after_utc > authority_module.EARLIEST + timedelta(days=1000)


@pytest.mark.parametrize("days", [-200, 3640, 5000])
def test_an_authority_that_is_not_valid_now_is_said(
    days: int, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = authority_module.trusted_now()
    tls = ServerTls(settings, lambda: NAMES)
    assert "tls renew --authority" not in caplog.text
    for module in (server_module, authority_module):
        monkeypatch.setattr(module, "trusted_now", lambda: now + timedelta(days=days))
    tls.refresh()
    assert "tls renew --authority" in caplog.text
    caplog.clear()
    # Once, and no other certificate at each look: none would last longer.
    assert not tls.refresh()
    assert caplog.text == ""


def test_a_certificate_of_another_authority_is_not_shown(settings: Settings) -> None:
    tls = ServerTls(settings, lambda: NAMES)
    make_authority(settings.authority_path, NAMES)
    assert tls.refresh()
    assert ServerTls(settings, lambda: NAMES).fingerprint == tls.fingerprint


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_certificate_is_made_anew(settings: Settings, content: bytes) -> None:
    ServerTls(settings, lambda: NAMES)
    (settings.tls_dir / "server.pem").write_bytes(content)
    ServerTls(settings, lambda: NAMES)
    assert shown(settings)


def test_a_name_that_the_authority_may_not_certify_is_said_and_left_out(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ServerTls(settings, lambda: NAMES)
    tls = ServerTls(settings, lambda: Names(("bank.example.com", *NAMES.dns), NAMES.addresses))
    assert "may not certify bank.example.com" in caplog.text
    assert "appliance tls renew --authority" in caplog.text
    names = shown(settings).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == list(NAMES.dns)
    caplog.clear()
    tls.refresh()
    assert not caplog.text


def test_the_operators_files_are_shown_and_read_again_when_they_change(tmp_path: Path) -> None:
    settings = operator(tmp_path)
    tls = ServerTls(settings)
    assert tls.fingerprint == authority_module.fingerprint_of(
        x509.load_pem_x509_certificate((tmp_path / "chain.pem").read_bytes())
    )
    assert not tls.refresh()
    operator(tmp_path)
    assert tls.refresh()
    assert not settings.tls_dir.exists()


def test_files_that_do_not_fit_are_said_and_the_certificate_before_is_kept(tmp_path: Path) -> None:
    settings = operator(tmp_path)
    tls = ServerTls(settings)
    key = (tmp_path / "key.pem").read_bytes()
    operator(tmp_path)
    (tmp_path / "key.pem").write_bytes(key)
    with pytest.raises(TlsError, match="cannot be used: KEY_VALUES_MISMATCH"):
        tls.refresh()
    (tmp_path / "key.pem").unlink()
    with pytest.raises(TlsError, match=r"cannot read its key .*key\.pem"):
        tls.refresh()


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    settings = operator(tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsError, match="encrypted"):
        ServerTls(settings)


def test_files_without_their_names_are_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="needs tls_certificate and tls_key"):
        load_settings({}, {"APPLIANCE_TLS": "files"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TlsError, match="cannot write"):
        ServerTls(Settings(data_dir=tmp_path, tls="auto"), lambda: NAMES)
