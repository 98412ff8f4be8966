"""HTTPS as clients see it: those that trust the exported authority, and those that should get nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service_manager.running import Running, managed_service, port_socket

KEY = "test-bootstrap-key-0123456789"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start a box on all addresses, with an authority of its own."""
    folder = tmp_path_factory.mktemp("https")
    (folder / "key").write_text(KEY)
    with (
        port_socket("0.0.0.0") as listener,
        managed_service(
            folder,
            listener,
            APPLIANCE_TLS="auto",
            APPLIANCE_TLS_NAMES="ai.example.lan",
            APPLIANCE_BOOTSTRAP_KEY_FILE=str(folder / "key"),
            APPLIANCE_MAX_CONNECTIONS="8",
        ) as running,
    ):
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def authority(box: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export what clients are to trust."""
    return box.export_authority(tmp_path_factory.mktemp("client") / "appliance.crt")


def test_httpx_that_trusts_the_authority_alone_is_served(box: Running, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    with httpx.Client(verify=context, trust_env=False, headers={"X-API-Key": KEY}) as http:
        for host in ("localhost", "127.0.0.1"):
            answer = http.get(f"https://{host}:{box.port}/v1/models")
            assert answer.status_code == 200
        body = {"model": "x", "messages": []}
        assert http.post(f"https://localhost:{box.port}/v1/chat/completions", json=body).status_code == 404


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl_that_trusts_the_authority_alone_is_served(box: Running, authority: Path) -> None:
    for host in ("localhost", "ai.example.lan", socket.gethostname().lower()):
        result = subprocess.run(
            [
                *("curl", "-sS", "--noproxy", "*", "--cacert", str(authority), "--capath", "/nonexistent"),
                *("--resolve", f"{host}:{box.port}:127.0.0.1", f"https://{host}:{box.port}/health"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert '"status":"ok"' in result.stdout, (host, result.stderr)


def test_who_does_not_trust_it_is_not_fooled(box: Running) -> None:
    with httpx.Client(trust_env=False) as http, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY"):
        http.get(f"https://localhost:{box.port}/health")


def test_another_name_is_refused_by_the_client(box: Running, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", box.port)) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(raw, server_hostname="elsewhere.lan")


def test_plain_http_gets_nothing(box: Running) -> None:
    with httpx.Client(trust_env=False) as http, pytest.raises(httpx.RemoteProtocolError):
        http.get(f"http://127.0.0.1:{box.port}/health")


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_protocols_are_refused(box: Running, version: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", box.port)) as raw, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(raw)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_new_protocols_are_taken(box: Running, authority: Path, version: str) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with (
        socket.create_connection(("127.0.0.1", box.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        # The request right behind the handshake, as fast clients send it.
        secure.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert secure.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_those_who_shake_no_hands_lock_nobody_out(box: Running, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    silent = [socket.create_connection(("127.0.0.1", box.port)) for _ in range(60)]
    try:
        with httpx.Client(verify=context, trust_env=False, timeout=10) as http:
            assert http.get(f"https://localhost:{box.port}/health").status_code == 200
        # As many idle ones are kept as requests may run; the oldest of the others went.
        for one in silent[:40]:
            one.settimeout(60)
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
    finally:
        for one in silent:
            one.close()


def test_many_at_once_are_all_served(box: Running, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    failures: list[object] = []

    def ask() -> None:
        try:
            with httpx.Client(verify=context, trust_env=False, timeout=30) as http:
                for _ in range(10):
                    assert http.get(f"https://localhost:{box.port}/health").status_code == 200
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []


def test_the_fingerprint_is_that_of_the_exported_authority(box: Running, authority: Path) -> None:
    printed = box.command("tls", "fingerprint").stdout.strip()
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", printed)
    assert f"SHA-256 to trust:       {printed}" in box.log.read_text()
    if shutil.which("openssl"):
        shown = subprocess.run(
            ["openssl", "x509", "-in", str(authority), "-noout", "-fingerprint", "-sha256"],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        assert printed in shown
    again = box.command("tls", "export", "--out", str(authority))
    assert again.returncode == 1
    assert "cannot write" in again.stderr
    assert box.command("tls", "export").stdout == authority.read_text()


def test_another_certificate_is_shown_without_a_restart(box: Running, authority: Path) -> None:
    """The last of this file: it waits for the service's next look."""

    def serial() -> int:
        context = ssl.create_default_context(cafile=str(authority))
        with (
            socket.create_connection(("127.0.0.1", box.port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            certificate = secure.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)

    before = serial()
    assert box.command("tls", "renew").returncode == 0
    deadline = time.monotonic() + 60
    while serial() == before and time.monotonic() < deadline:
        time.sleep(1)
    assert serial() != before
