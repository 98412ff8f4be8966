"""Transcription of a recording with known words."""

from __future__ import annotations

import io
import re
import socket
import wave
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.samples.speech import JFK_WORDS, jfk_wav
from tests.service import CHAT, SPEECH, Service


@pytest.fixture(scope="session")
def jfk() -> Path:
    return jfk_wav()


def transcribe(service: Service, audio: bytes, mount: str = "/v1", **fields: Any) -> httpx.Response:
    files: list[tuple[str, Any]] = [("file", ("speech.wav", audio, "audio/wav"))]
    form: dict[str, Any] = {"model": SPEECH, **fields}
    with service.http as http:
        return http.post(f"{mount}/audio/transcriptions", data=form, files=files)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_the_official_client_reads_a_spoken_sentence(client: OpenAI, jfk: Path) -> None:
    with jfk.open("rb") as file:
        answer = client.audio.transcriptions.create(model=SPEECH, file=file)

    assert words(answer.text) == JFK_WORDS


def test_verbose_json_has_segments_words_and_the_models_own_figures(client: OpenAI, jfk: Path) -> None:
    with jfk.open("rb") as file:
        answer = client.audio.transcriptions.create(
            model=SPEECH,
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )

    assert answer.language == "en"
    assert 10.5 < answer.duration < 11.5
    assert answer.segments
    previous = 0.0
    for segment in answer.segments:
        assert previous <= segment.start <= segment.end <= answer.duration
        assert segment.avg_logprob < 0
        assert 0 < segment.no_speech_prob < 1
        assert segment.compression_ratio > 0
        assert segment.tokens
        previous = segment.end
    assert words(" ".join(segment.text for segment in answer.segments)) == JFK_WORDS
    assert answer.words
    assert [words(word.word)[0] for word in answer.words] == JFK_WORDS


def test_every_response_format(service: Service, jfk: Path) -> None:
    audio = jfk.read_bytes()
    plain = transcribe(service, audio, response_format="text")
    srt = transcribe(service, audio, response_format="srt")
    vtt = transcribe(service, audio, response_format="vtt")
    body = transcribe(service, audio, response_format="json").json()

    assert plain.headers["content-type"].startswith("text/plain")
    assert words(plain.text) == JFK_WORDS
    assert plain.text.endswith("\n")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:\d\d,\d{3}\n", srt.text)
    assert vtt.text.startswith("WEBVTT\n")
    assert words(body["text"]) == JFK_WORDS
    assert body["task"] == "transcribe"
    assert body["usage"]["seconds"] == 11
    assert body["id"]
    assert not body["segments"][0]["text"].startswith(" ")


def test_a_stream_adds_up_to_the_text(client: OpenAI, jfk: Path) -> None:
    deltas, done = [], None
    with jfk.open("rb") as file:
        for event in client.audio.transcriptions.create(model=SPEECH, file=file, stream=True):
            if event.type == "transcript.text.delta":
                deltas.append(event.delta)
            elif event.type == "transcript.text.done":
                done = event.text

    assert done is not None
    assert "".join(deltas).strip() == done
    assert words(done) == JFK_WORDS


@pytest.mark.parametrize(
    "fields", [{"language": "en"}, {"language": "English"}, {"prompt": "A speech."}, {"temperature": "0.2"}]
)
def test_hints_are_taken(service: Service, jfk: Path, fields: dict[str, str]) -> None:
    response = transcribe(service, jfk.read_bytes(), **fields)

    assert response.status_code == 200, response.text
    assert "country" in response.json()["text"]


@pytest.mark.parametrize(
    "fields",
    [
        {"language": "klingon"},
        {"temperature": "1.5"},
        {"temperature": "nan"},
        {"response_format": "docx"},
        {"timestamp_granularities[]": "letter"},
        {"stream": "perhaps"},
        {"model": CHAT},
        {"model": ""},
    ],
)
def test_a_wrong_field_is_a_400(service: Service, jfk: Path, fields: dict[str, str]) -> None:
    response = transcribe(service, jfk.read_bytes(), **fields)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("audio", [b"", b"not audio at all" * 100, b"RIFF\xff\xff\xff\xffWAVEfmt "])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_what_is_no_audio_is_a_400_also_for_a_stream(service: Service, audio: bytes, stream: str) -> None:
    response = transcribe(service, audio, stream=stream)

    assert response.status_code == 400, response.text
    assert response.headers["content-type"].startswith("application/json")


def test_a_form_that_is_none_is_a_400(service: Service) -> None:
    with service.http as http:
        for content, kind in (
            (b"{}", "application/json"),
            (b"garbage", "multipart/form-data"),
            (b"garbage", "multipart/form-data; boundary=x"),
            (
                b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nabc\r\n--x--\r\n",
                "multipart/form-data; boundary=x",
            ),
        ):
            response = http.post("/v1/audio/transcriptions", content=content, headers={"Content-Type": kind})
            assert response.status_code == 400, (content, kind, response.text)


COMPACTIFAI = "/compactifai/v1"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": "json"},
        {"response_format": "text"},
        {"response_format": "srt"},
        {"response_format": "vtt"},
        {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
        {"stream": "true", "include[]": "logprobs", "chunking_strategy": "auto"},
        {"stream": "perhaps", "timestamp_granularities[]": "letter", "chunking_strategy": "{"},
        {"language": ""},
    ],
)
def test_compactifai_answers_its_json_whatever_the_form_says(
    service: Service, jfk: Path, fields: dict[str, Any]
) -> None:
    response = transcribe(service, jfk.read_bytes(), COMPACTIFAI, **fields)
    body = response.json()

    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"task", "language", "duration", "text", "segments"}
    assert (body["task"], body["language"]) == ("transcribe", "en")
    assert 10.5 < body["duration"] < 11.5
    assert words(body["text"]) == JFK_WORDS
    for segment in body["segments"]:
        assert set(segment) == {
            *("id", "start", "end", "text", "temperature", "avg_logprob", "no_speech_prob"),
        }
        assert segment["text"] == segment["text"].strip()
        assert segment["start"] <= segment["end"] <= body["duration"]
    assert words(" ".join(segment["text"] for segment in body["segments"])) == JFK_WORDS


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": "docx"},
        {"temperature": "1.5"},
        {"language": "klingon"},
        {"model": CHAT},
        {"model": "nope"},
    ],
)
def test_compactifai_refuses_what_is_out_of_bounds(
    service: Service, jfk: Path, fields: dict[str, str]
) -> None:
    response = transcribe(service, jfk.read_bytes(), COMPACTIFAI, **fields)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(("mount", "status"), [("/v1", 400), (COMPACTIFAI, 422)])
def test_what_is_missing_is_named_in_the_way_of_the_api(
    service: Service, jfk: Path, mount: str, status: int
) -> None:
    file = {"file": ("a.wav", jfk.read_bytes())}
    none = {"prompt": (None, "x")}
    with service.http as http:
        for fields, missing in (
            ({**file}, ["model"]),
            ({"model": (None, SPEECH)}, ["file"]),
            ({**none}, ["file", "model"]),
        ):
            response = http.post(f"{mount}/audio/transcriptions", files=fields)
            assert response.status_code == status, response.text
            assert response.json()["error"]["param"] == missing[0]
            if status == 422:
                assert response.json()["detail"] == [
                    {"loc": ["body", name], "msg": "Field required", "type": "missing"} for name in missing
                ]


@pytest.mark.parametrize(("mount", "status"), [("/v1", 400), (COMPACTIFAI, 422)])
def test_a_form_as_clients_send_it_without_a_file_is_read(
    bare_service: Service, mount: str, status: int
) -> None:
    with bare_service.http as http:
        answer = http.post(f"{mount}/audio/transcriptions", data={"model": "x", "prompt": "é & =+"})
        as_text = http.post(f"{mount}/audio/transcriptions", data={"model": "x", "file": "words"})
        nameless = http.post(f"{mount}/audio/transcriptions", data={"prompt": "x"})

    for response in (answer, as_text):
        # In the union a wrong form is said before a model that is not there.
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == "file"
    assert nameless.status_code == status
    if status == 422:
        assert [each["loc"][1] for each in nameless.json()["detail"]] == ["file", "model"]
        assert (
            as_text.json()["detail"][0]["msg"] == "Value error, Expected UploadFile, received: <class 'str'>"
        )


def test_compactifai_misses_the_fields_of_what_is_no_form(bare_service: Service) -> None:
    with bare_service.http as http:
        for answer in (
            http.post(f"{COMPACTIFAI}/audio/transcriptions"),
            http.post(f"{COMPACTIFAI}/audio/transcriptions", json={"model": "x", "file": "words"}),
        ):
            assert answer.status_code == 422, answer.text
            assert [each["loc"] for each in answer.json()["detail"]] == [["body", "file"], ["body", "model"]]


def test_compactifai_hears_nothing_in_silence(service: Service) -> None:
    silence = io.BytesIO()
    with wave.open(silence, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16_000))
    body = transcribe(service, silence.getvalue(), COMPACTIFAI).json()

    assert (body["text"], body["segments"]) == ("", [])
    assert body["duration"] == pytest.approx(1.0)


def test_an_upload_leaves_nothing_in_the_spool(service: Service, jfk: Path) -> None:
    padded = io.BytesIO(jfk.read_bytes() + b"\0" * (3 << 20))
    assert transcribe(service, padded.getvalue()).status_code == 200

    assert list((service.data_dir / "spool").iterdir()) == []


def test_an_upload_over_the_limit_is_413(service: Service) -> None:
    host, port = service.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n" % (service.key.encode(), 2 << 30)
        )
        answer = b""
        while b'"error"' not in answer and (piece := connection.recv(65536)):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error"' in answer
