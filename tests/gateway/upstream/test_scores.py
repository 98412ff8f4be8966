"""Whatever a reranker's scale, its scores come back as logits in the order of the texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import OverloadedError
from appliance.gateway.routing.records import ProviderType
from appliance.gateway.upstream.client import Upstream
from appliance.gateway.upstream.scores import as_logits, scores
from appliance.network.egress import EgressPolicy, egress_client
from tests.gateway.upstream.fake import MODEL, Exchange, FakeUpstream, fake_upstream

TEXTS = [f"text {number}" for number in range(70)]


def upstream_to(server: FakeUpstream, kind: ProviderType) -> Upstream:
    return Upstream(name="test", type=kind, url=server.base_url, key=None, timeout=5, model_name=MODEL)


async def scored(server: FakeUpstream, kind: ProviderType, texts: list[str]) -> list[float]:
    async with egress_client(EgressPolicy(["127.0.0.1/32"])) as client:
        return (await scores(client, upstream_to(server, kind), "query", texts, {})).logits


@given(st.lists(st.floats(-15, 15), min_size=1))
def test_a_probability_becomes_the_logit_it_was(logits: list[float]) -> None:
    found = as_logits([1 / (1 + math.exp(-logit)) for logit in logits])
    assert found == pytest.approx(logits, rel=1e-6, abs=1e-6)


def test_probabilities_of_0_and_1_become_finite_logits() -> None:
    low, high = as_logits([0.0, 1.0])
    assert -20 < low < -15
    assert 15 < high < 20


def test_logits_stay_as_they_are() -> None:
    assert as_logits([-3.5, 0.5, 8.0]) == [-3.5, 0.5, 8.0]


async def test_tei_is_asked_in_its_own_words_and_batches() -> None:
    def script(exchange: Exchange) -> None:
        texts = exchange.json["texts"]
        assert exchange.json == {"query": "query", "texts": texts}
        if len(texts) > 32:
            exchange.answer({"error": "batch size > maximum allowed batch size 32"}, 422)
            return
        found = [{"index": place, "score": int(text.split()[1]) / 100} for place, text in enumerate(texts)]
        exchange.answer(sorted(found, key=lambda each: -each["score"]))

    with fake_upstream(script) as server:
        logits = await scored(server, "tei", TEXTS)
    assert [each.path for each in server.posted] == ["/rerank"] * 3
    assert logits == sorted(logits)
    assert logits[50] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("kind", "path"), [("vllm", "/v2/rerank"), ("albert", "/v1/rerank"), ("appliance", "/v1/rerank")]
)
async def test_other_families_get_documents_and_are_read_by_index(kind: ProviderType, path: str) -> None:
    def script(exchange: Exchange) -> None:
        count = len(exchange.json["documents"])
        results = [{"index": place, "relevance_score": 0.5} for place in reversed(range(count))]
        exchange.answer({"results": results, "usage": {"total_tokens": 77}})

    with fake_upstream(script) as server:
        logits = await scored(server, kind, TEXTS)
    assert server.posted[0].path == path
    assert server.posted[0].json["documents"] == TEXTS
    assert server.posted[0].json["model"] == MODEL
    assert logits == [0.5 if kind == "appliance" else 0.0] * len(TEXTS)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"results": None},
        {"results": [{"index": 0, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 0.5}, {"index": -1, "relevance_score": 0.5}]},
        {"results": [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": "high"}]},
        {"results": [{"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": None}]},
    ],
)
async def test_an_answer_that_is_no_ranking_is_a_failure_of_the_provider(answer: Any) -> None:
    with (
        fake_upstream(lambda exchange: exchange.answer(answer)) as server,
        pytest.raises(OverloadedError, match="temporarily unavailable"),
    ):
        await scored(server, "vllm", ["a", "b"])
