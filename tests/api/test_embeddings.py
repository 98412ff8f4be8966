"""Embeddings."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.service import CHAT, EMBEDDING, Service

TEXTS = ["a king and a queen", "the monarch and his wife", "a ripe yellow banana"]


def embed(service: Service, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post("/v1/embeddings", json={"model": EMBEDDING, "input": TEXTS, **fields})


def vectors(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]], dtype=np.float32)


def test_the_official_client_gets_unit_vectors_that_mean_something(client: OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDING, input=TEXTS)
    found = np.array([item.embedding for item in answer.data])

    assert found.shape == (3, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    similarity = found @ found.T
    assert similarity[0, 1] > similarity[0, 2] + 0.1
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 9


def test_base64_is_bitwise_the_float_form(service: Service) -> None:
    floats = vectors(embed(service, encoding_format="float"))
    coded = embed(service, encoding_format="base64").json()["data"]

    for row, item in zip(floats, coded, strict=True):
        assert base64.b64decode(item["embedding"]) == row.astype("<f4").tobytes()


def test_alone_and_in_a_batch_are_the_same(service: Service) -> None:
    batch = vectors(embed(service, input=[*TEXTS, "filler " * 200]))
    alone = np.concatenate([vectors(embed(service, input=text)) for text in TEXTS])

    assert np.min(np.sum(batch[:3] * alone, axis=1)) > 1 - 1e-3


def test_dimensions_are_a_normalised_prefix(service: Service) -> None:
    whole = vectors(embed(service))
    cut = vectors(embed(service, dimensions=32))

    expected = whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True)
    assert np.allclose(cut, expected, atol=1e-6)


def test_token_arrays_are_embedded_as_given(service: Service) -> None:
    response = embed(service, input=[[101, 2019, 102], [101, 3000, 102]])

    assert vectors(response).shape == (2, 384)
    assert response.json()["usage"]["prompt_tokens"] == 6
    assert np.array_equal(vectors(embed(service, input=[101, 2019, 102])), vectors(response)[:1])


def test_truncation_keeps_the_last_tokens_and_only_when_asked(service: Service) -> None:
    long = "word " * 3000

    refused = embed(service, input=long)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in refused.json()["error"]["message"]
    assert embed(service, input=long, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 512
    assert embed(service, input=long, truncate_prompt_tokens=7).json()["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": [[]]},
        {"input": ["a", 1]},
        {"input": ["a"] * 2049},
        {"input": [10**6]},
        {"input": [[-1]]},
        {"input": {"a": 1}},
        {"encoding_format": "int8"},
        {"dimensions": 0},
        {"dimensions": 385},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": 513},
        {"model": CHAT},
    ],
)
def test_what_is_wrong_is_a_400(service: Service, fields: dict[str, Any]) -> None:
    response = embed(service, **fields)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_extra_fields_and_nulls_are_ignored(service: Service) -> None:
    fields = {"user": "u", "additional_data": {"a": 1}, "dimensions": None, "encoding_format": None}

    assert embed(service, **fields).status_code == 200
