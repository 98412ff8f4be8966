"""Every route but the public ones wants a key, in any of the header forms."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from litestar.connection import ASGIConnection
from openai import OpenAI

from appliance.accounts.keys import Account
from appliance.api.authentication import CACHE_SCOPE_HEADER, cache_scope_of
from appliance.storage.database import READERS
from tests.service import KEY, PLAIN, Service

PUBLIC = ["/health", "/healthcheck", "/health/ready", "/version", "/openapi.json", "/docs"]
# Open too, but they answer only to what proves who asks.
PROVING = ("/v1/auth/login", "/setup")


@pytest.mark.parametrize("path", PUBLIC)
def test_public_routes_answer_without_a_key(service: Service, path: str) -> None:
    assert httpx.get(service.base_url + path).status_code == 200


def test_every_other_route_answers_401_without_a_key(service: Service) -> None:
    document = httpx.get(f"{service.base_url}/openapi.json").json()
    checked = []
    for path, operations in document["paths"].items():
        for method in operations:
            # OpenGateLLM's mount has words of its own: test_error_shapes.py.
            if path in PUBLIC or path.endswith(PROVING) or path.startswith("/opengatellm/"):
                continue
            url = service.base_url + path.replace("{model_id}", "x")
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
                response = httpx.request(method, url, headers=headers, verify=PLAIN)
                assert response.status_code == 401, (method, path, headers)
                body = response.json()
                assert body["error"]["code"] == "invalid_api_key"
                assert body["error"]["type"] == "authentication_error"
                assert body["detail"] == body["error"]["message"]
                assert response.headers["www-authenticate"] == "Bearer"
            checked.append(path)
    assert len(checked) >= 8


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": KEY},
        {"X-API-Key": KEY},
        {"unstructured-api-key": KEY},
        {"Authorization": f"Bearer cmp_{KEY}"},
        {"X-API-Key": f"cmp_{KEY}"},
        {"Authorization": "Basic cHJveHk6cHJveHk=", "X-API-Key": KEY},
    ],
)
def test_a_key_is_taken_in_every_header_form(service: Service, headers: dict[str, str]) -> None:
    assert httpx.get(f"{service.base_url}/v1/models", headers=headers).status_code == 200


def test_the_official_client_sees_an_authentication_error(service: Service) -> None:
    stranger = OpenAI(base_url=f"{service.base_url}/v1", api_key="sk-wrong", max_retries=0)

    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_bad_body_without_a_key_says_nothing_of_the_body(service: Service) -> None:
    response = httpx.post(f"{service.base_url}/v1/chat/completions", content=b"{not json")

    assert response.status_code == 401


@pytest.mark.parametrize(
    ("said", "scope"),
    [
        (None, "user:7"),
        ("0" * 32, "user:7:" + "0" * 32),
        ("user:8", "user:7"),
        ("0" * 33, "user:7"),
        ("0" * 31 + "\n", "user:7"),
    ],
)
def test_a_box_in_front_divides_the_scope_of_its_key_and_enters_no_other(
    said: str | None, scope: str
) -> None:
    account = Account(7, 1, "key", "front", "box@example.org", None, 1, None, frozenset(), None, 0, None)
    headers = [] if said is None else [(CACHE_SCOPE_HEADER.encode(), said.encode())]
    asgi: Any = {"type": "http", "headers": headers, "user": account}
    assert cache_scope_of(ASGIConnection(asgi)) == scope


def open_files(pid: int) -> list[str]:
    """Return what a running process has open; a connection that ends meanwhile is left out."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return found


def test_keys_are_looked_up_on_the_event_loop_alone(bare_service: Service) -> None:
    """A thread for each look-up would cost more than it does, and have a connection to the store of its own."""
    with bare_service.http as http, ThreadPoolExecutor(16) as pool:
        statuses = set(pool.map(lambda _: http.get("/v1/models").status_code, range(200)))
    assert statuses == {200}
    files = open_files(bare_service.process.pid)
    # The writer's, the loop's, those of the reading threads; and of the start, which asks for an administrator.
    assert sum(each.endswith("/appliance.db") for each in files) <= READERS + 3
