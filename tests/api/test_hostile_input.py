"""Bad input gives the contract's status, never a 500 or a hang, and leaves the service well."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.hostile import no_requests
from tests.service import CHAT, EMBEDDING, RERANK, Service

ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [*no_requests("model"), json.dumps({"model": "x" * 1_000_000}).encode()],
)
def test_what_is_no_request_is_refused(service: Service, route: str, body: bytes) -> None:
    with service.http as http:
        response = http.post(route, content=body)

    assert response.status_code in (400, 404, 422), response.text[:200]
    assert response.json()["error"]["message"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "input", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "stream",
     "stream_options", "n", "tools", "tool_choice", "logit_bias", "response_format", "dimensions", "documents", "query",
     "encoding_format", "user", "model"]
)  # fmt: skip


@settings(max_examples=60)
@given(fields=st.dictionaries(FIELDS, JSON, max_size=4), route=st.sampled_from(ROUTES))
def test_no_field_value_makes_a_server_error(service: Service, fields: dict[str, Any], route: str) -> None:
    body = {
        "model": EMBEDDING if route.endswith("embeddings") else CHAT,
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": "hi",
        "input": "hi",
        "max_tokens": 1,
    }
    if route.endswith("rerank"):
        body = {"query": "a", "documents": ["b"]}
    fields.pop("max_tokens", None)  # a large one would only take long
    with service.http as http:
        response = http.post(route, json=body | fields)

    assert response.status_code < 500, (fields, response.text)


def test_a_body_over_the_limit_is_413(service: Service) -> None:
    with service.http as http:
        response = http.post("/v1/embeddings", content=b" " * (65 << 20))

    assert response.status_code == 413
    assert response.json()["error"]["message"]


FLOODS = [
    ("/v1/embeddings", b'{"model": "%s", "input": "%s"}' % (EMBEDDING.encode(), b"a b " * 15_000_000)),
    ("/v1/embeddings", b'{"model": "%s", "input": [%s1]}' % (EMBEDDING.encode(), b"1," * 1_900_000)),
    ("/v1/embeddings", b'{"model": "%s", "input": [%s1]}' % (EMBEDDING.encode(), b"1," * 20_000_000)),
    ("/v1/embeddings", b'{"model": "%s", "input": [%s[]]}' % (EMBEDDING.encode(), b"[]," * 600_000)),
    ("/v1/rerank", b'{"query": "a", "documents": [%s""]}' % (b'"",' * 1_500_000)),
    (
        "/opengatellm/v1/rerank",
        b'{"model": "%s", "query": "a", "documents": [%s"a"]}' % (RERANK.encode(), b'"a",' * 1_900_000),
    ),
    (
        "/v1/chat/completions",
        b'{"model": "%s", "messages": [%s{"role": "u"}]}' % (CHAT.encode(), b'{"role":"u"},' * 900_000),
    ),
    (
        "/v1/chat/completions",
        b'{"model": "%s", "messages": [], "stop": [%s"a"]}' % (CHAT.encode(), b'"a",' * 1_900_000),
    ),
    ("/v1/completions", b'{"model": "%s", "prompt": [%s1]}' % (CHAT.encode(), b"1," * 1_900_000)),
]


@pytest.mark.parametrize(("route", "body"), FLOODS, ids=range(len(FLOODS)))
def test_a_flood_in_one_body_is_refused_while_others_are_answered(
    service: Service, route: str, body: bytes
) -> None:
    with ThreadPoolExecutor(1) as pool, service.http as http:
        flood = pool.submit(http.post, route, content=body)
        answered = 0
        while not flood.done():
            # A stall of the loop would let this time out.
            assert httpx.get(f"{service.base_url}/health", timeout=3).status_code == 200
            answered += 1
        response = flood.result()

    assert answered
    assert response.status_code in (400, 422), response.text[:200]
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/v1/chat/completions", {"model": "m" * 500_000, "messages": []}, 404),
        ("/opengatellm/v1/rerank", {"model": " " * 500_000, "query": "a", "documents": ["a"]}, 422),
        *(
            ("/v1/ocr", {"document": {"type": "image_url", "image_url": "x"}, "pages": pages}, 422)
            for pages in ("2" + " " * 500_000 + "-1", "0-20000" + " " * 500_000)
        ),
    ],
    ids=["model", "no model", "range", "pages"],
)
def test_what_is_quoted_from_a_request_is_short(
    service: Service, route: str, body: dict[str, Any], status: int
) -> None:
    with service.http as http:
        response = http.post(route, json=body)

    assert response.status_code == status
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x00\x01\x02\x03" * 100,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_http_does_not_hurt_the_service(service: Service, raw: bytes) -> None:
    host, port = service.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    assert httpx.get(f"{service.base_url}/health").status_code == 200
