"""What the tests of OpenGateLLM's API share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.upstream.fake import FakeUpstream, fake_upstream, streaming
from tests.opengatellm.gate import Client, user_of
from tests.service import Service, running_service


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service without models that may have providers on this machine."""
    data_dir = tmp_path_factory.mktemp("opengatellm") / "data"
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS="127.0.0.1/32") as service:
        yield service


@pytest.fixture(scope="session")
def master(gate: Service) -> Client:
    """Return who has the master key."""
    return Client(gate, gate.key)


@pytest.fixture(scope="session")
def administrator(master: Client) -> Client:
    """Return an ordinary user with every permission."""
    return user_of(master, permissions=["admin", "create_public_collection", "read_metric", "provide_models"])


@pytest.fixture(params=["master", "administrator"])
def admin(request: pytest.FixtureRequest) -> Client:
    """Return whoever may use the administrators' routes, one after the other."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def nobody(master: Client) -> Client:
    """Return a user without permissions and models."""
    return user_of(master)


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """Serve a model that answers chats with "one two three"."""
    with fake_upstream(streaming()) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def box(service: Service) -> Client:
    """Return who has the master key of a service with models."""
    return Client(service, service.key)
