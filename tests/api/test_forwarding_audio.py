"""Speech for other servers: each family gets its own form, every mount its own answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from email.parser import BytesParser
from typing import Any

import httpx
import pytest

from tests.api.upstreams import routed
from tests.gateway.upstream.fake import (
    MODEL,
    Exchange,
    FakeUpstream,
    Received,
    chat_answer,
    fake_upstream,
)
from tests.service import Service

# Larger than a piece, and no multiple of three.
AUDIO = b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(256)) * 1500 + b"\x01"
KIND = "automatic-speech-recognition"


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """Start a server that says "hello"."""
    with fake_upstream(lambda exchange: exchange.answer({"text": "hello", "own": 1})) as server:
        yield server


def transcribe(box: Service, model: str, mount: str = "/v1", **fields: str) -> httpx.Response:
    with box.http as http:
        return http.post(
            f"{mount}/audio/transcriptions",
            data={"model": model, **fields},
            files={"file": ("a.wav", AUDIO, "audio/wav")},
        )


def form_of(sent: Received) -> dict[str, Any]:
    """Return the parts of a multipart form by their names."""
    head = f"Content-Type: {sent.headers['Content-Type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + sent.body)
    parts: dict[str, Any] = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")  # type: ignore[union-attr]
        parts[str(name)] = part
    return parts


def test_vllm_gets_a_form_and_english_where_no_language_is_named(
    box: Service, upstream: FakeUpstream
) -> None:
    answer = transcribe(box, routed(box, upstream, kind=KIND), prompt="Hé", temperature="0.5")
    assert answer.status_code == 200, answer.text
    sent = upstream.posted[-1]
    assert sent.path == "/v1/audio/transcriptions"
    assert int(sent.headers["Content-Length"]) == len(sent.body)
    parts = form_of(sent)
    file = parts.pop("file")
    assert AUDIO in sent.body
    assert file.get_filename() == "audio.wav"
    values = {name: part.get_payload(decode=True).decode() for name, part in parts.items()}
    assert values == {
        "model": MODEL,
        "response_format": "json",
        "temperature": "0.5",
        "language": "en",
        "prompt": "Hé",
    }
    body = answer.json()
    assert (body["text"], body["own"]) == ("hello", 1)
    assert body["id"].startswith("request-")


def test_albert_is_always_asked_for_json(box: Service, upstream: FakeUpstream) -> None:
    model = routed(box, upstream, kind=KIND, type="albert")
    assert transcribe(box, model, response_format="text").text == "hello\n"
    assert transcribe(box, model, response_format="verbose_json").json()["text"] == "hello"
    for sent in upstream.posted:
        assert form_of(sent)["response_format"].get_payload() == "json"
        assert "language" not in form_of(sent)
    assert transcribe(box, model, response_format="srt").status_code == 400


def test_mistral_is_asked_in_a_chat(box: Service, upstream: FakeUpstream) -> None:
    upstream.script = lambda exchange: exchange.answer(chat_answer(" said so "))
    model = routed(box, upstream, kind=KIND, type="mistral")
    answer = transcribe(box, model, language="fr")
    assert answer.json()["text"] == "said so"
    sent = upstream.posted[-1]
    assert sent.path == "/v1/chat/completions"
    assert int(sent.headers["Content-Length"]) == len(sent.body)
    audio, text = sent.json["messages"][0]["content"]
    assert audio["type"] == "input_audio"
    assert base64.b64decode(audio["input_audio"], validate=True) == AUDIO
    assert "fr" in text["text"]


def test_opengatellms_mount_answers_its_four_keys(box: Service, upstream: FakeUpstream) -> None:
    model = routed(box, upstream, kind=KIND)
    body = transcribe(box, model, "/opengatellm/v1").json()
    assert set(body) == {"id", "text", "model", "usage"}
    assert (body["text"], body["model"]) == ("hello", model)
    assert transcribe(box, model, "/opengatellm/v1", response_format="text").text == "hello"


def test_compactifais_mount_answers_its_json(box: Service, upstream: FakeUpstream) -> None:
    segment = {"id": 0, "start": 0.0, "end": 1.0, "text": "hello"}
    full = {"text": "hello", "language": "english", "duration": 1.0, "segments": [segment]}
    upstream.script = lambda exchange: exchange.answer(full)
    body = transcribe(box, routed(box, upstream, kind=KIND), "/compactifai/v1").json()
    assert body == {"task": "transcribe", **full}
    assert form_of(upstream.posted[-1])["response_format"].get_payload() == "verbose_json"


def test_a_family_that_does_not_stream_is_streamed_at_once(box: Service, upstream: FakeUpstream) -> None:
    answer = transcribe(box, routed(box, upstream, kind=KIND), stream="true")
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line]
    assert [event["type"] for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert "stream" not in form_of(upstream.posted[-1])


def test_openais_stream_is_passed_on_and_its_end_is_needed(box: Service, upstream: FakeUpstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.event({"type": "transcript.text.delta", "delta": "hel"})
        exchange.event({"type": "transcript.text.delta", "delta": "lo"})
        if upstream.seen.get("whole"):
            exchange.event({"type": "transcript.text.done", "text": "hello", "usage": {"seconds": 2}})
        exchange.end_stream()

    upstream.script = script
    model = routed(box, upstream, kind=KIND, type="openai")
    upstream.seen["whole"] = True
    answer = transcribe(box, model, stream="true")
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line]
    assert [event.get("delta") for event in events] == ["hel", "lo", None]
    assert events[-1]["usage"]["seconds"] == 2
    assert "cost" in events[-1]["usage"]
    upstream.seen["whole"] = False
    answer = transcribe(box, model, stream="true")
    assert "error" in [json.loads(line[6:]) for line in answer.text.split("\n") if line][-1]


@pytest.mark.parametrize("body", [{}, {"text": None}, [], b"hello", b"\xff"])
@pytest.mark.parametrize("streamed", ["false", "true"])
def test_an_answer_without_text_is_a_failure_of_the_provider(
    box: Service, upstream: FakeUpstream, body: Any, streamed: str
) -> None:
    upstream.script = lambda exchange: exchange.answer(body)
    assert transcribe(box, routed(box, upstream, kind=KIND), stream=streamed).status_code == 503


def test_a_second_provider_gets_the_whole_file_again(box: Service, upstream: FakeUpstream) -> None:
    with fake_upstream(lambda exchange: exchange.answer({}, 500)) as bad:
        model = routed(box, bad, upstream, kind=KIND)
        for _ in range(3):
            assert transcribe(box, model).status_code == 200
    assert all(AUDIO in sent.body for sent in (*bad.posted, *upstream.posted))
