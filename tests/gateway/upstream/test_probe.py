"""A new provider is looked at before it is taken: is it there, does it have the model, how large is that?"""

from __future__ import annotations

import pytest

from appliance.gateway.errors import ProbeFailedError
from appliance.gateway.routing.records import ProviderType
from appliance.gateway.upstream.probe import Probed, probe
from appliance.network.egress import EgressPolicy, egress_client
from tests.gateway.upstream.fake import KEY, MODEL, Exchange, fake_upstream


def embedding(exchange: Exchange) -> None:
    exchange.answer({"data": [{"index": 0, "embedding": [0.1] * 384}]})


def silent(exchange: Exchange) -> None:
    exchange.client_left(5)


async def probed(url: str, kind: ProviderType, model: str = MODEL, *, vectors: bool = False) -> Probed:
    async with egress_client(EgressPolicy(["127.0.0.1/32"])) as client:
        return await probe(client, kind, url, KEY, model, vectors, 1)


@pytest.mark.parametrize("kind", ["vllm", "openai", "albert", "appliance", "mistral"])
@pytest.mark.parametrize("model", [MODEL, "alias"])
@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_the_models_route_tells_the_context(kind: ProviderType, model: str, end: str) -> None:
    with fake_upstream(embedding) as server:
        assert await probed(server.base_url + end, kind, model) == Probed(4096, None)
    assert [each.path for each in server.received] == ["/v1/models"]
    assert server.received[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_tei_is_asked_for_its_info() -> None:
    with fake_upstream(embedding) as server:
        assert await probed(server.base_url, "tei", vectors=True) == Probed(512, 384)
    assert [each.path for each in server.received] == ["/info", "/v1/embeddings"]


@pytest.mark.parametrize("kind", ["vllm", "tei"])
async def test_another_model_is_not_the_one(kind: ProviderType) -> None:
    with (
        fake_upstream(embedding) as server,
        pytest.raises(ProbeFailedError, match=r"^Model provider other not reachable\.$") as raised,
    ):
        await probed(server.base_url, kind, "other")
    assert raised.value.status == 424


@pytest.mark.parametrize(
    "answer",
    [{}, {"data": []}, {"data": [{}]}, {"data": [{"embedding": []}]}, {"data": [{"embedding": "AAAA"}]}, []],
)
async def test_an_embedding_that_is_none_fails_the_probe(answer: object) -> None:
    with fake_upstream(lambda exchange: exchange.answer(answer)) as server, pytest.raises(ProbeFailedError):
        await probed(server.base_url, "vllm", vectors=True)


async def test_a_server_that_is_silent_or_absent_or_out_of_bounds_fails_the_probe() -> None:
    with fake_upstream(silent) as server, pytest.raises(ProbeFailedError):
        await probed(server.base_url, "vllm", vectors=True)
    for url in (server.base_url, "http://192.0.2.1", "http://", "ftp://127.0.0.1", "nonsense", "http://[::1"):
        with pytest.raises(ProbeFailedError):
            await probed(url, "vllm")


async def test_a_key_that_no_header_can_hold_fails_the_probe() -> None:
    with fake_upstream(embedding) as server:
        async with egress_client(EgressPolicy(["127.0.0.1/32"])) as client:
            for key in ("a\r\nX-Evil: 1", "é", "nul\0"):
                try:
                    await probe(client, "vllm", server.base_url, key, MODEL, False, 1)
                except ProbeFailedError:
                    continue
                assert "X-Evil" not in server.received[-1].headers
