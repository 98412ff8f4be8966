"""Where the service listens: never in the clear where others can read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.service.errors import ServiceError
from appliance.service.listeners import is_loopback, listeners_of, own_address
from tests.service import free_port


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_plain_http_beyond_loopback_is_refused_unless_it_is_meant(host: str) -> None:
    port = free_port()
    with pytest.raises(ServiceError, match=r'Set tls = "auto"'):
        listeners_of(Settings(host=host, port=port), [])
    for settings in (
        Settings(host=host, port=port, allow_plain_http=True),
        Settings(host=host, port=port, tls="auto"),
    ):
        (listener,) = listeners_of(settings, [])
        listener.close()


def test_an_inherited_socket_beyond_loopback_is_refused_alike() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        with pytest.raises(ServiceError, match="plain HTTP there would show keys"):
            listeners_of(Settings(), [listener])


def test_an_inherited_socket_stands_in_place_of_the_port(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert listeners_of(Settings(port=port), [listener]) == [listener]
        assert not caplog.text
        assert listeners_of(Settings(port=port - 1), [listener]) == [listener]
        assert f"listens on port {port}; port = {port - 1} does nothing" in caplog.text


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%lo", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


def test_a_listener_on_all_addresses_is_reached_by_loopback(tmp_path: Path) -> None:
    for family, host, own in ((socket.AF_INET, "0.0.0.0", "127.0.0.1"), (socket.AF_INET6, "::", "::1")):
        with socket.socket(family) as listener:
            listener.bind((host, 0))
            assert own_address(listener) == (own, listener.getsockname()[1])
