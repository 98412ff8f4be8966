"""Embeddings, reranking, transcription and OCR of the box's own models."""

from __future__ import annotations

import io
import wave
from typing import Any

import httpx
import pytest

from tests.opengatellm.gate import Client, body_of, limits, refusal, unique, user_of, wrong_fields
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH

USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "cost", "carbon", "requests"}


@pytest.fixture(scope="module")
def user(box: Client) -> Client:
    """Return a user that may use every model."""
    routers = [each["id"] for each in box.read("/admin/routers", limit=100)["data"]]
    return user_of(box, role_limits=[limit for router in routers for limit in limits(router)])


def silence() -> bytes:
    """Return a second of it, as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(32_000))
    return file.getvalue()


def transcribe(client: Client, **fields: Any) -> httpx.Response:
    """Send a recording."""
    return client.call(
        "POST",
        "/audio/transcriptions",
        data={"model": SPEECH, **fields},
        files={"file": ("silence.wav", silence(), "audio/wav")},
    )


@pytest.mark.parametrize("given", ["one text", ["one", "two"], [101, 2023, 102], [[101, 102], [101, 2023]]])
def test_embeddings_of_every_input(user: Client, given: Any) -> None:
    answer = body_of(user.post("/embeddings", {"model": EMBEDDING, "input": given}))
    many = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1

    assert set(answer) == {"object", "id", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", EMBEDDING)
    assert [each["index"] for each in answer["data"]] == list(range(many))
    assert all(len(each["embedding"]) == 384 for each in answer["data"])
    assert set(answer["usage"]) == USAGE
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert answer["usage"]["carbon"]["kWh"]["max"] > 0


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input": ""}, ["body", "input"]),
        ({"input": []}, ["body", "input"]),
        ({"input": "x", "encoding_format": "base64"}, ["body", "encoding_format"]),
        ({"input": "x", "model": None}, ["body", "model"]),
    ],
)
def test_wrong_embeddings_are_422(user: Client, fields: dict[str, Any], place: list[Any]) -> None:
    answer = user.post("/embeddings", {"model": EMBEDDING, **fields})

    assert [where for where, _ in wrong_fields(answer)] == [place]


def test_reranking_sorts_and_cuts(user: Client) -> None:
    body = {
        "model": RERANK,
        "query": "capital of France",
        "documents": ["Bread.", "Paris is the capital.", "Fog."],
    }
    answer = body_of(user.post("/rerank", body))
    one = body_of(user.post("/rerank", {**body, "top_n": 1}))
    more = body_of(user.post("/rerank", {**body, "top_n": 99}))

    assert set(answer) == {"object", "id", "results", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", RERANK)
    assert answer["results"][0]["index"] == 1
    assert one["results"] == answer["results"][:1]
    assert more["results"] == answer["results"]
    assert set(answer["usage"]) == USAGE
    assert answer["usage"]["prompt_tokens"] > 0
    assert body_of(user.post("/rerank", {**body, "documents": []}))["results"] == []


def test_transcriptions_are_json_or_text(user: Client) -> None:
    answer = body_of(transcribe(user, language="english"))
    text = transcribe(user, response_format="text", temperature="0.5", prompt="", unknown="x")

    assert set(answer) == {"id", "text", "model", "usage"}
    assert answer["model"] == SPEECH
    assert set(answer["usage"]) == USAGE
    assert text.status_code == 200
    assert text.headers["content-type"].startswith("text/plain")


def test_wrong_transcriptions_are_refused(user: Client) -> None:
    assert refusal(transcribe(user, model="none"), 404) == "Model not found."
    assert refusal(transcribe(user, model=CHAT), 422) == "Wrong model type."
    for fields in ({"response_format": "verbose_json"}, {"language": "klingon"}, {"temperature": "2"}):
        ((place, _),) = wrong_fields(transcribe(user, **fields))
        assert place[-1] == next(iter(fields))


def test_ocr_without_its_model_is_not_found(user: Client) -> None:
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}

    assert (
        refusal(user.post("/ocr", {"model": unique("ocr"), "document": document}), 404) == "Model not found."
    )
    assert refusal(user.post("/ocr", {"model": CHAT, "document": document}), 422) == "Wrong model type."
    assert user.post("/ocr", {"model": CHAT}).status_code == 422
    for body in ({"document": document}, {"document": document, "model": None}):
        assert refusal(user.post("/ocr", body), 404) == "Model not found."


def test_each_of_them_is_recorded(box: Client) -> None:
    routers = [each["id"] for each in box.read("/admin/routers", limit=100)["data"]]
    user = user_of(box, role_limits=[limit for router in routers for limit in limits(router)])
    asked = {
        "/v1/embeddings": user.post("/embeddings", {"model": EMBEDDING, "input": "x"}),
        "/v1/rerank": user.post("/rerank", {"model": RERANK, "query": "x", "documents": ["x"]}),
        "/v1/audio/transcriptions": transcribe(user),
    }

    assert {answer.status_code for answer in asked.values()} == {200}
    records = user.read("/me/usage")["data"]
    assert [record["endpoint"] for record in records] == [*reversed(asked)]
    for record in records:
        said = body_of(asked[record["endpoint"]])["usage"]
        assert {**record["usage"], "metrics": None, "requests": 1} == {**said, "metrics": None}


@pytest.mark.parametrize("temperature", [".5", " 0.5 ", "+0.5"])
def test_a_temperature_is_written_in_any_form(user: Client, temperature: str) -> None:
    assert body_of(transcribe(user, temperature=temperature))["model"] == SPEECH
