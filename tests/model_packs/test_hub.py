"""The hub fetcher against a local server: pinned, redirected, and silent without an address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_packs.build import build_pack
from model_packs.errors import SourceError
from model_packs.fetch import fetch_hub
from model_packs.recipe import HubSource, PinnedFile, parse_recipe
from tests.model_packs.decoder.tiny import TinyModel
from tests.model_packs.decoder.tiny import recipe_text as decoder_recipe
from tests.model_packs.sample import PAYLOAD, sha256


class Hub(ThreadingHTTPServer):
    """Serves ``files`` at their paths; big ones through a redirect, as hubs do. Remembers what was asked."""

    files: dict[str, bytes]
    asked: list[tuple[str, str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        content = self.server.files.get(self.path.removeprefix("/stored"))
        if content is None:
            self.send_error(404)
        elif self.path.endswith(".safetensors") and not self.path.startswith("/stored"):
            self.send_response(302)
            self.send_header("Location", f"/stored{self.path}")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source(content: bytes = PAYLOAD, path: str = "model.safetensors") -> HubSource:
    pinned = PinnedFile(path=path, sha256=sha256(content))
    return HubSource(hub="org/tiny", revision="0123abcd", license="CC0-1.0", members={"model": pinned})


def test_file_is_fetched_through_a_redirect_and_then_cached(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.files["/org/tiny/resolve/0123abcd/model.safetensors"] = PAYLOAD
    first = fetch_hub(source(), tmp_path)
    assert first["model"].read_bytes() == PAYLOAD
    assert len(hub.asked) == 2
    assert hub.asked[0][1] == "Bearer hf_secret"
    assert fetch_hub(source(), tmp_path) == first
    assert len(hub.asked) == 2


def test_wrong_hash_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["/org/tiny/resolve/0123abcd/model.safetensors"] = PAYLOAD[:-1]
    with pytest.raises(SourceError, match="wrong SHA-256"):
        fetch_hub(source(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_absent_file_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"resolve/0123abcd/deep/config\.json answered 404"):
        fetch_hub(source(path="deep/config.json"), tmp_path)


def test_without_an_address_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "file:///etc"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(SourceError, match="set HF_ENDPOINT"):
            fetch_hub(source(), tmp_path)


def test_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match="cannot fetch"):
        fetch_hub(source(), tmp_path)


def test_decoder_pack_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    members = TinyModel().save(tmp_path / "tiny")
    for name, path in members.items():
        hub.files[f"/org/tiny/resolve/main/{name}"] = path.read_bytes()
    text = decoder_recipe("tiny", members, 'type = "hub"\nhub = "org/tiny"\nrevision = "main"')
    pack = build_pack(parse_recipe(text), tmp_path / "cache")
    assert (pack / "model.onnx.data").is_file()
