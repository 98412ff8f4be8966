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
    assert refused.json()["error"]["message"] == (
        "This model's maximum context length is 512 tokens. However, you requested 3002 tokens in the input for "
        "embedding generation. Please reduce the length of the input."
    )
    assert embed(service, input=long, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 512
    assert embed(service, input=long, truncate_prompt_tokens=7).json()["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("length", [100, 3000, 200_000])
def test_a_truncated_text_is_its_end_between_the_special_tokens(service: Service, length: int) -> None:
    end = "the quick brown fox jumps"
    cut = embed(service, input=["word " * length + end, end, "short"], truncate_prompt_tokens=7)

    assert cut.json()["usage"]["prompt_tokens"] == 7 + 7 + 3
    first, second, _ = vectors(cut)
    assert np.allclose(first, second, atol=1e-3)
    assert np.allclose(second, vectors(embed(service, input=end))[0], atol=1e-3)


def test_fewer_tokens_than_the_special_ones_are_kept_too(service: Service) -> None:
    for keep in (1, 2):
        response = embed(service, input="a long text of words", truncate_prompt_tokens=keep)
        assert response.json()["usage"]["prompt_tokens"] == keep


def test_truncated_token_arrays_keep_their_last_ids(service: Service) -> None:
    ids = [101, *range(2000, 2600), 102]
    cut = embed(service, input=[ids, ids * 10], truncate_prompt_tokens=5)

    assert cut.json()["usage"]["prompt_tokens"] == 10
    assert np.array_equal(vectors(cut)[0], vectors(embed(service, input=ids[-5:]))[0])


@pytest.mark.parametrize("value", ["word " * 200_000, [1] * 513, [1] * 100_000, [[1], [2] * 513]])
def test_what_is_too_long_is_refused_in_the_words_that_clients_look_for(service: Service, value: Any) -> None:
    response = embed(service, input=value)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "input"
    message = response.json()["message"]
    assert message.startswith("This model's maximum context length is 512 tokens. However, you requested ")
    assert message.endswith(" in the input for embedding generation. Please reduce the length of the input.")


def test_as_many_inputs_as_the_api_allows(service: Service) -> None:
    response = embed(service, input=[[101, 102]] * 2048, dimensions=1)

    assert [item["index"] for item in response.json()["data"]] == list(range(2048))


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


@pytest.mark.parametrize("value", ["x", 5, [1], {"a": {}}, False, None])
def test_extra_fields_are_ignored_whatever_their_type_and_nulls_are_defaults(
    service: Service, value: Any
) -> None:
    names = ("user", "additional_data", "input_type", "task", "prompt_name", "instruction", "priority")
    fields = dict.fromkeys(names, value) | {"dimensions": None, "encoding_format": None}

    assert np.array_equal(vectors(embed(service, **fields)), vectors(embed(service)))


def test_numbers_may_be_written_as_text(service: Service) -> None:
    assert vectors(embed(service, dimensions="8", truncate_prompt_tokens=5.0)).shape == (3, 8)


def test_ids_of_another_tokenizer_never_break_it(service: Service) -> None:
    # Clients that count with cl100k send its ids: valid here or not, but never an error of ours.
    for ids in ([9906, 11, 1917], [100_256, 3], [2**70], [-1]):
        response = embed(service, input=[ids], encoding_format="base64")
        assert response.status_code == (200 if max(ids) < 30_522 and min(ids) >= 0 else 400)
