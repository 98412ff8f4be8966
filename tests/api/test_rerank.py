"""Reranking."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service import RERANK, Service

QUERY = "How do plants make their food?"
DOCUMENTS = [
    "The stock market fell by two percent on Monday.",
    "Photosynthesis lets plants turn light, water and carbon dioxide into sugar.",
    "A leaf is green because of chlorophyll.",
]


def rerank(service: Service, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **fields})


def test_documents_are_sorted_by_relevance(service: Service) -> None:
    body = rerank(service, model=RERANK).json()

    assert body["object"] == "rerank"
    assert body["results"][0]["index"] == 1
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert sorted(result["index"] for result in body["results"]) == [0, 1, 2]
    assert all(result["document"] is None for result in body["results"])
    assert body["usage"]["total_tokens"] > 30


def test_the_model_is_optional(service: Service) -> None:
    named = rerank(service, model=RERANK).json()

    for fields in ({}, {"model": None}, {"model": "default/not-specified"}):
        body = rerank(service, **fields).json()
        assert body["model"] == RERANK
        assert body["results"] == named["results"]


def test_top_n_return_documents_and_raw_scores(service: Service) -> None:
    whole = rerank(service).json()["results"]
    best = rerank(service, top_n=1, return_documents=True).json()["results"]
    raw = rerank(service, raw_scores=True).json()["results"]

    assert best == [{**whole[0], "document": DOCUMENTS[1]}]
    assert [result["index"] for result in raw] == [result["index"] for result in whole]
    assert max(abs(result["relevance_score"]) for result in raw) > 1
    assert rerank(service, top_n=50).json()["results"] == whole


def test_documents_may_be_objects_and_ties_keep_their_order(service: Service) -> None:
    body = rerank(service, documents=[{"text": "same"}] * 3, return_documents=True).json()

    assert [result["index"] for result in body["results"]] == [0, 1, 2]
    assert body["results"][0]["document"] == {"text": "same"}


def test_documents_far_longer_than_the_context_are_scored(service: Service) -> None:
    body = rerank(service, documents=["plant " * 20_000, DOCUMENTS[1]])

    assert body.status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": []},
        {"documents": ["a"] * 2049},
        {"documents": ["a" * 122_881]},
        {"query": "a" * 122_881},
        {"query": None},
        {"documents": "a"},
        {"documents": [1]},
        {"top_n": 0},
        {"top_n": "x"},
    ],
)
def test_a_wrong_field_is_a_422_with_a_list(service: Service, fields: dict[str, Any]) -> None:
    response = rerank(service, **fields)

    assert response.status_code == 422, response.text
    detail = response.json()["detail"]
    assert {"loc", "msg", "type"} <= set(detail[0])
    assert detail[0]["loc"][0] == "body"
    assert response.json()["error"]["message"]


def test_an_unknown_model_is_404(service: Service) -> None:
    assert rerank(service, model="nope").status_code == 404
