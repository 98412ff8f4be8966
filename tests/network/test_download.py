"""A download takes no more than there is room for, unpacks nothing, and stops when told."""

from __future__ import annotations

import gzip
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.network.download import RESERVED_BYTES, DownloadCancelledError, download
from appliance.network.egress import EgressError, EgressPolicy

LOOPBACK = EgressPolicy(["127.0.0.0/8"])
BOMB = gzip.compress(bytes(10 << 20))
CONTENT = bytes(range(256)) * 10_000


class Handler(BaseHTTPRequestHandler):
    asked: threading.Event
    ended: threading.Event
    encodings: list[str | None]

    def do_GET(self) -> None:
        self.encodings.append(self.headers["Accept-Encoding"])
        if self.path.startswith("/babble"):
            self.wfile.write(b"no HTTP\r\n\r\n")
            return
        self.send_response(200)
        is_bomb = self.path.startswith("/bomb")
        body = BOMB if is_bomb else CONTENT
        if is_bomb:
            self.send_header("Content-Encoding", "gzip")
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/silent":
            self.wfile.write(body[:1000])
            self.asked.set()
            self.ended.wait()
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    class One(Handler):
        asked = threading.Event()
        ended = threading.Event()
        encodings: list[str | None] = []  # noqa: RUF012 - of this class alone

    with ThreadingHTTPServer(("127.0.0.1", 0), One) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", One
        One.ended.set()
        server.shutdown()


def nothing(_done: int, _total: int) -> None:
    """Take progress and drop it."""


def never() -> bool:
    return False


def test_the_plain_bytes_are_asked_for(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    url, handler = server
    download(LOOPBACK, f"{url}/file", tmp_path / "f", nothing, never)

    assert (tmp_path / "f").read_bytes() == CONTENT
    assert handler.encodings == ["identity"]


def test_a_compressed_answer_is_refused_and_not_unpacked(
    server: tuple[str, type[Handler]], tmp_path: Path
) -> None:
    with pytest.raises(EgressError, match="compressed"):
        download(LOOPBACK, f"{server[0]}/bomb", tmp_path / "f", nothing, never)

    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("path", "room"), [("/file", len(CONTENT) - 1), ("/unsized", 1000)])
def test_a_disk_without_room_ends_it(
    server: tuple[str, type[Handler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, room: int
) -> None:
    usage = SimpleNamespace(free=RESERVED_BYTES + room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(EgressError, match="full") as raised:
        download(LOOPBACK, f"{server[0]}{path}", tmp_path / "f", nothing, never)

    assert raised.value.status == 507


@pytest.mark.parametrize("path", ["/bomb", "/babble"])
@pytest.mark.parametrize("server_does", ["answers", "is not there", "cannot be"])
def test_why_it_failed_is_said_without_the_urls_secrets(
    server: tuple[str, type[Handler]], tmp_path: Path, server_does: str, path: str
) -> None:
    """The log and the list of jobs have it."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    places = {
        "answers": server[0].removeprefix("http://"),
        "is not there": nobody,
        "cannot be": "127.0.0.1:99999",
    }
    url = f"http://user:s3cret@{places[server_does]}{path}?token=s3cret#s3cret"
    with pytest.raises(EgressError) as raised:
        download(LOOPBACK, url, tmp_path / "f", nothing, never)

    assert f"http://{places[server_does]}{path}" in raised.value.message
    assert "s3cret" not in raised.value.message


def test_a_silent_server_does_not_hold_a_cancelled_download(
    server: tuple[str, type[Handler]], tmp_path: Path
) -> None:
    url, handler = server
    with pytest.raises(DownloadCancelledError):
        download(LOOPBACK, f"{url}/silent", tmp_path / "f", nothing, handler.asked.is_set)

    assert not handler.ended.is_set()
