"""Another box behind HTTPS as a provider: taken when its authority is trusted, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.upstreams import LOOPBACK, add_provider, make_router
from tests.service import EMBEDDING, KEY, Service, link_default_packs, running_service
from tests.service_manager.running import Running, managed_service, port_socket


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start a box under an authority of its own, with the embedding model alone."""
    folder = tmp_path_factory.mktemp("https-back")
    link_default_packs(folder / "data", EMBEDDING)
    (folder / "key").write_text(KEY)
    with (
        port_socket() as listener,
        managed_service(
            folder, listener, APPLIANCE_TLS="auto", APPLIANCE_BOOTSTRAP_KEY_FILE=str(folder / "key")
        ) as running,
    ):
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def authority(back: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export what the box in front is to trust, as its administrator would."""
    return back.export_authority(tmp_path_factory.mktemp("trusted") / "other-box.pem")


@pytest.fixture(scope="module")
def front(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the box that clients talk to."""
    with running_service(
        tmp_path_factory.mktemp("https-front") / "data",
        APPLIANCE_PROVIDER_NETWORKS=LOOPBACK,
        APPLIANCE_TRUSTED_AUTHORITIES=str(authority),
    ) as service:
        yield service


def test_a_trusted_box_answers_over_https(front: Service, back: Running) -> None:
    router, name = make_router(front, "text-embeddings-inference")
    add_provider(
        front, router, f"https://127.0.0.1:{back.port}", type="appliance", model_name=EMBEDDING, key=KEY
    )
    with front.http as http:
        answer = http.post("/v1/embeddings", json={"model": name, "input": "over https"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) == 384


def test_a_box_under_an_unknown_authority_is_not_reached(back: Running, tmp_path: Path) -> None:
    with running_service(tmp_path / "data", APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as untrusting:
        router, _ = make_router(untrusting, "text-embeddings-inference")
        body = {
            "router": router,
            "type": "appliance",
            "url": f"https://127.0.0.1:{back.port}",
            "model_name": EMBEDDING,
            "key": KEY,
        }
        with untrusting.http as http:
            answer = http.post("/v1/admin/providers", json=body)
    assert answer.status_code == 424, answer.text
    assert "CERTIFICATE_VERIFY_FAILED" in untrusting.log.read_text()


def test_a_file_of_authorities_that_is_none_ends_the_start_in_words(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"trusted_authorities: /nonexistent\.pem"),
        running_service(tmp_path / "data", APPLIANCE_TRUSTED_AUTHORITIES="/nonexistent.pem"),
    ):
        pass
