"""What all tests share: one service over the default packs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from openai import OpenAI

from tests.service import Service, link_default_packs, running_service

# How long an example or its making takes says how busy the machine is.
settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the service once for the whole run."""
    data_dir = tmp_path_factory.mktemp("service") / "data"
    link_default_packs(data_dir)
    with running_service(data_dir) as service:
        yield service


@pytest.fixture(scope="session")
def bare_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service without any model, for what needs none."""
    with running_service(tmp_path_factory.mktemp("bare") / "data") as service:
        yield service


@pytest.fixture(scope="session")
def client(service: Service) -> OpenAI:
    """Return the official OpenAI client on that service."""
    return service.openai
