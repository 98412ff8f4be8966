"""Reranking."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.people import router_id
from tests.service import EMBEDDING, RERANK, Service

QUERY = "How do plants make their food?"
DOCUMENTS = [
    "The stock market fell by two percent on Monday.",
    "Photosynthesis lets plants turn light, water and carbon dioxide into sugar.",
    "A leaf is green because of chlorophyll.",
]


COHERE = ["/v2/rerank", "/cohere/v1/rerank", "/cohere/v2/rerank"]


def rerank(service: Service, path: str = "/v1/rerank", **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post(path, json={"query": QUERY, "documents": DOCUMENTS, **fields})


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


def test_an_answer_names_the_model_as_the_request_does(service: Service) -> None:
    path = f"/v1/admin/routers/{router_id(service, RERANK)}"
    with service.http as http:
        try:
            assert http.patch(path, json={"aliases": ["the-reranker"]}).status_code == 204
            assert rerank(service, model="the-reranker").json()["model"] == "the-reranker"
            assert rerank(service, "/rerank", model="the-reranker").json()["model"] == "the-reranker"
        finally:
            assert http.patch(path, json={"aliases": []}).status_code == 204


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
    assert body["meta"]["tokens"]["input_tokens"] == body["usage"]["prompt_tokens"]
    assert "meta" not in rerank(service).json()


def test_space_around_texts_does_not_count(service: Service) -> None:
    bare = rerank(service, documents=["a" * 122_880]).json()
    padded = rerank(service, query=f"\n {QUERY}\t", documents=["  " + "a" * 122_880 + "\n"])

    assert padded.status_code == 200
    assert padded.json()["results"] == bare["results"]


def test_as_many_documents_as_the_api_allows(service: Service) -> None:
    body = rerank(service, documents=["leaf"] * 2048, top_n=2048).json()

    assert [result["index"] for result in body["results"]] == list(range(2048))


@pytest.mark.parametrize("value", [1, "x", ["title"], {"a": None}, True, None])
def test_other_apis_fields_are_ignored_whatever_their_type(service: Service, value: Any) -> None:
    names = ("rank_fields", "max_tokens_per_doc", "max_chunks_per_doc", "truncate", "user", "priority")

    for path in ("/v1/rerank", *COHERE):
        assert rerank(service, path, **dict.fromkeys(names, value)).status_code == 200


@pytest.mark.parametrize("path", COHERE)
def test_cohere_clients_get_their_shape(service: Service, path: str) -> None:
    plain = rerank(service, path, model=RERANK).json()
    whole = rerank(service, path, return_documents=True, top_n=2, documents=[{"text": d} for d in DOCUMENTS])
    expected = rerank(service).json()

    assert set(plain) == {"id", "results", "meta"}
    assert plain["results"] == [
        {"index": result["index"], "relevance_score": result["relevance_score"]}
        for result in expected["results"]
    ]
    assert plain["meta"]["api_version"] == {"version": "1" if "v1" in path else "2"}
    assert plain["meta"]["tokens"]["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert [result["document"]["text"] for result in whole.json()["results"]] == [
        DOCUMENTS[result["index"]] for result in expected["results"][:2]
    ]


@pytest.mark.parametrize(("path", "field"), [("/rerank", "texts"), ("/cohere/v2/rerank", "documents")])
def test_a_flood_of_documents_is_refused(service: Service, path: str, field: str) -> None:
    body = b'{"query": "a", "%s": [%s""]}' % (field.encode(), b'"",' * 1_500_000)
    with service.http as http:
        response = http.post(path, content=body)

    assert response.status_code == 422
    assert len(response.content) < 3000


def texts_reranked(service: Service, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, **fields})


def test_tei_clients_get_their_list_at_the_root(service: Service) -> None:
    expected = rerank(service).json()["results"]
    plain = texts_reranked(service).json()
    raw = texts_reranked(service, raw_scores=True, truncate=True, return_text=True).json()

    assert plain == [{"index": result["index"], "score": result["relevance_score"]} for result in expected]
    assert [item["text"] for item in raw] == [DOCUMENTS[item["index"]] for item in raw]
    assert raw[0]["score"] == rerank(service, raw_scores=True).json()["results"][0]["relevance_score"]


def test_documents_at_the_root_are_answered_as_under_v1(service: Service) -> None:
    expected = rerank(service, return_documents=True).json()
    found = rerank(service, "/rerank", return_documents=True).json()

    assert set(found) == set(expected)
    assert found["results"] == expected["results"]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({}, ["body", "texts"]),
        ({"texts": ["a"], "documents": ["b"]}, ["body", "texts"]),
        ({"texts": []}, ["body", "texts"]),
        ({"texts": ["a"] * 2049}, ["body", "texts"]),
        ({"texts": ["a", "a" * 122_881]}, ["body", "texts", 1]),
        ({"texts": "a"}, ["body", "texts"]),
        ({"texts": ["b", {"text": "a"}]}, ["body", "texts", 1]),
        ({"texts": ["a"], "return_text": "perhaps"}, ["body", "return_text"]),
    ],
)
def test_a_wrong_field_at_the_root_is_a_422(
    service: Service, fields: dict[str, Any], location: list[Any]
) -> None:
    with service.http as http:
        response = http.post("/rerank", json={"query": QUERY, **fields})

    assert response.status_code == 422, response.text
    assert response.json()["detail"][0]["loc"] == location


def test_documents_far_longer_than_the_context_are_scored(service: Service) -> None:
    body = rerank(service, documents=["plant " * 20_000, DOCUMENTS[1]])

    assert body.status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/compressa/v1/rerank", *COHERE])
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
        {"documents": [{"title": "a"}]},
        {"documents": None},
        {"top_n": 0},
        {"top_n": "x"},
    ],
)
def test_a_wrong_field_is_a_422_with_a_list(service: Service, path: str, fields: dict[str, Any]) -> None:
    response = rerank(service, path, **fields)

    assert response.status_code == 422, response.text
    detail = response.json()["detail"]
    assert {"loc", "msg", "type"} <= set(detail[0])
    assert detail[0]["loc"][0] == "body"
    assert response.json()["error"]["message"]


def test_a_missing_field_is_named(service: Service) -> None:
    with service.http as http:
        response = http.post("/v1/rerank", json={"query": QUERY})

    assert response.status_code == 422
    assert response.json()["detail"] == [
        {"loc": ["body", "documents"], "msg": "Field required", "type": "missing"}
    ]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", *COHERE])
def test_an_unknown_model_is_404_and_one_of_another_task_400(service: Service, path: str) -> None:
    unknown = rerank(service, path, model="nope")
    wrong = rerank(service, path, model=EMBEDDING)

    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "The model `nope` does not exist."
    assert wrong.status_code == 400
    assert "does not support reranking" in wrong.json()["detail"]
