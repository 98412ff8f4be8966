"""The watch over upstream servers: it looks at those that failed or are idle, and at no others."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from appliance.accounts.sealing import Sealer
from appliance.config import Settings
from appliance.gateway.routing.health import IDLE_SECONDS, HealthWatch
from appliance.gateway.routing.records import Provider
from appliance.gateway.routing.states import Outcome, ProviderStates
from appliance.network.egress import EgressPolicy, egress_client
from tests.gateway.routing.sample import Clock, provider, router

SEALER = Sealer(bytes(32))
KEY = "sk-upstream"


class Handler(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(f"{self.path} {self.headers.get('Authorization')}")
        body = json.dumps({"data": [{"id": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    Handler.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Hold a port at which nobody listens, and nobody else can."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def make_states() -> tuple[ProviderStates, Clock]:
    clock = Clock()
    return ProviderStates(Settings(), clock), clock


async def look(states: ProviderStates, *providers: Provider) -> None:
    async with egress_client(EgressPolicy(["127.0.0.1/32"])) as client:
        await HealthWatch(states, lambda: providers, client, SEALER).look()


async def test_idle_servers_are_asked_with_their_key_and_busy_ones_left_alone(upstream: str) -> None:
    states, clock = make_states()
    sealed = SEALER.seal(KEY, 1)
    remote = provider(1, url=upstream, sealed_key=sealed)
    local = provider(2, type="local", url=None)

    await look(states, remote, local)
    assert Handler.seen == [f"/v1/models Bearer {KEY}"]
    clock.now += IDLE_SECONDS - 1
    await look(states, remote)
    assert len(Handler.seen) == 1
    await states.acquire(router(remote), set(), 0)
    states.ended(remote, Outcome(failed=False, sampled=True, latency=1, ttft=None, completion_tokens=1))
    clock.now += IDLE_SECONDS - 1
    await look(states, remote)
    assert len(Handler.seen) == 1
    clock.now += 1
    await look(states, remote)
    assert len(Handler.seen) == 2


async def test_a_server_that_is_gone_is_found_out_and_so_is_its_return(
    upstream: str, closed_port: int
) -> None:
    states, clock = make_states()
    gone = provider(1, url=f"http://127.0.0.1:{closed_port}/")
    sound = provider(2, url=upstream)
    for _ in range(3):
        await look(states, gone, sound)
        clock.now += IDLE_SECONDS
    assert not states.healthy(gone)
    assert states.healthy(sound)

    back = provider(1, url=upstream)
    await look(states, back)
    assert not states.healthy(back)  # only a request proves that it works
    chosen = await states.acquire(router(back, sound), set(), 0)
    assert chosen == back
    states.ended(back, Outcome(failed=False, sampled=True, latency=1, ttft=None, completion_tokens=1))
    assert states.healthy(back)


@pytest.mark.parametrize(
    "fields",
    [{"model_name": "another"}, {"sealed_key": b"sealed elsewhere"}, {"url": "http://10.255.255.1/"}],
    ids=["model", "key", "network"],
)
async def test_a_missing_model_a_lost_key_and_a_forbidden_network_are_failures(
    upstream: str, fields: dict[str, Any]
) -> None:
    states, clock = make_states()
    broken = provider(1, **{"url": upstream, **fields})
    for _ in range(3):
        await look(states, broken)
        clock.now += IDLE_SECONDS
    assert not states.healthy(broken)


async def test_it_looks_again_and_again_until_it_is_closed(upstream: str) -> None:
    states, clock = make_states()
    looks = 0

    def providers() -> list[Provider]:
        nonlocal looks
        looks += 1
        return [provider(1, url=upstream)]

    async with egress_client(EgressPolicy(["127.0.0.1/32"])) as client:
        watch = HealthWatch(states, providers, client, SEALER, interval=0.02)
        watch.start()
        async with asyncio.timeout(30):
            while len(Handler.seen) < 3:
                clock.now += IDLE_SECONDS
                await asyncio.sleep(0.01)
        await watch.close()
        # What it had asked already may still be on its way to the server: no new look begins.
        before = looks
        await asyncio.sleep(0.1)
        assert looks == before
