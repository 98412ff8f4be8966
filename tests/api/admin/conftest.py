"""What the tests of administrators' routes share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.service import Service


@pytest.fixture(scope="module")
def http(bare_service: Service) -> Iterator[httpx.Client]:
    """Keep one client open for what is drawn again and again."""
    with bare_service.http as http:
        yield http
