"""What the tests of calls to other servers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.upstreams import LOOPBACK
from tests.gateway.upstream.fake import FakeUpstream, fake_upstream, streaming
from tests.service import CHAT, Service, link_default_packs, running_service


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service without models that may call servers on the loopback."""
    data_dir = tmp_path_factory.mktemp("box") / "data"
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
        yield service


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Service]:
    """Start another box with the chat model alone."""
    data_dir = tmp_path / "second"
    link_default_packs(data_dir, CHAT)
    with running_service(data_dir) as service:
        yield service


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """Start one scripted server; a test may give it another script."""
    with fake_upstream(streaming()) as server:
        yield server
