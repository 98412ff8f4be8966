"""Quality of service and priority over HTTP, before an upstream that answers when the test lets it."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.api.asking import unanswered
from tests.api.monitoring.reading import scraped
from tests.people import Person, make_person, make_role
from tests.service import Service, running_service


class Upstream(ThreadingHTTPServer):
    """A chat server that tells which requests arrive, and answers each when it is let."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived: queue.Queue[str] = queue.Queue()
        self.go = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "model", "max_model_len": 1000}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.arrived.put(body["messages"][0]["content"])
        self.server.go.acquire(timeout=30)
        message = {"role": "assistant", "content": "Yes."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.answer(
            {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage}
        )

    def answer(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    settings = {
        "APPLIANCE_PROVIDER_NETWORKS": "127.0.0.1/32",
        "APPLIANCE_ROUTING_MAX_RETRIES": "2",
        "APPLIANCE_ROUTING_RETRY_COUNTDOWN": "2.0",
    }
    with running_service(data_dir, **settings) as service:
        yield service


@pytest.fixture
def upstream(gateway: Service) -> Iterator[Upstream]:
    """Put an upstream behind the router ``held``, which takes one request at a time."""
    with Upstream() as server, gateway.http as http:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        router = http.post("/v1/admin/routers", json={"name": "held", "type": "text-generation"}).json()["id"]
        provider = {
            "router": router,
            "type": "vllm",
            "url": server.url,
            "model_name": "model",
            "qos_metric": "inflight",
            "qos_limit": 0,
        }
        assert http.post("/v1/admin/providers", json=provider).status_code == 201
        yield server
        for _ in range(20):
            server.go.release()
        http.delete(f"/v1/admin/routers/{router}")
        server.shutdown()


def ask(caller: Service | Person, text: str) -> httpx.Response:
    body = {"model": "held", "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    with caller.http as http:
        return http.post("/v1/chat/completions", json=body)


def test_a_request_beyond_the_limit_waits_and_is_told_how_long(gateway: Service, upstream: Upstream) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, gateway, "first")
        assert upstream.arrived.get(timeout=30) == "first"
        started = time.monotonic()
        second = ask(gateway, "second")
        waited = time.monotonic() - started
        upstream.go.release()
        assert first.result().status_code == 200
    assert second.status_code == 503
    told = re.fullmatch(r"Model is too busy after (\d+) seconds", second.json()["message"])
    assert told is not None
    assert 4 <= int(told[1]) <= round(waited)
    assert second.headers["Retry-After"] == "10"
    assert upstream.arrived.empty()


def test_who_waits_is_served_by_priority_as_soon_as_a_place_frees(
    gateway: Service, upstream: Upstream
) -> None:
    people = {priority: make_person(gateway, priority=priority) for priority in (0, 2, 9)}
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, gateway, "running")]
        assert upstream.arrived.get(timeout=30) == "running"
        for priority, person in people.items():
            answers.append(pool.submit(ask, person, str(priority)))
        until_waiting(gateway, len(people))
        order = []
        for _ in people:
            upstream.go.release()
            order.append(upstream.arrived.get(timeout=30))
        upstream.go.release()
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert order == ["9", "2", "0"]


def until_waiting(gateway: Service, requests: int) -> None:
    deadline = time.monotonic() + 30
    with gateway.http as http:
        while scraped(http).value("appliance_router_waiting", router="held") != requests:
            assert time.monotonic() < deadline, "not all of them wait"
            time.sleep(0.02)


def test_a_client_that_leaves_frees_its_place(gateway: Service, upstream: Upstream) -> None:
    with unanswered(gateway, {"model": "held", "messages": [{"role": "user", "content": "gone"}]}):
        assert upstream.arrived.get(timeout=30) == "gone"
    upstream.go.release()
    upstream.go.release()
    assert ask(gateway, "next").status_code == 200


def test_who_may_use_no_model_is_not_told_that_none_is_installed(gateway: Service) -> None:
    with make_person(gateway, make_role(gateway, limits=[])).http as http:
        answer = http.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
    assert answer.status_code == 400
    assert answer.json()["message"] == "No model for reranking is installed that you may use."
