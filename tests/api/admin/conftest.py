"""What the tests of administrators' routes share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.service import Service, running_service


@pytest.fixture(scope="module")
def http(bare_service: Service) -> Iterator[httpx.Client]:
    """Keep one client open for what is drawn again and again."""
    with bare_service.http as http:
        yield http


@pytest.fixture(scope="module")
def own_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service without models whose only administrator is the first one; others may have made more elsewhere."""
    with running_service(tmp_path_factory.mktemp("own") / "data") as service:
        yield service
