"""Transcription on OpenGateLLM's mount: its form, its two formats, and ``language`` as the one to answer in."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.asking import answer_of
from tests.api.test_opengatellm_mount import MOUNT, USAGE, refusal
from tests.samples.speech import jfk_wav
from tests.service import SPEECH, Service


def transcribe(service: Service, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post(
            f"{MOUNT}/audio/transcriptions",
            data={"model": SPEECH, **fields},
            files={"file": ("jfk.wav", jfk_wav().read_bytes())},
        )


def test_a_transcription_has_the_keys_of_the_api(service: Service) -> None:
    answer = answer_of(transcribe(service))

    assert set(answer) == {"id", "text", "model", "usage"}
    assert answer["model"] == SPEECH
    assert set(answer["usage"]) == USAGE
    assert "what you can do for your country" in answer["text"]


def test_a_transcription_as_text_is_the_bare_text(service: Service) -> None:
    answer = transcribe(service, response_format="text")

    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == answer.text.strip()
    assert "your country" in answer.text


def test_the_language_is_that_of_the_output(service: Service) -> None:
    english, french = transcribe(service, language="english"), transcribe(service, language="fr")

    assert "your country" in answer_of(english)["text"]
    assert "vous demandez" in answer_of(french)["text"]


@pytest.mark.parametrize(
    ("fields", "location", "kind"),
    [
        ({"response_format": "srt"}, ["body", "response_format"], "enum"),
        ({"language": "English"}, ["body", "language"], "enum"),
        ({"language": "klingon"}, ["body", "language"], "enum"),
        ({"temperature": "1.5"}, ["body", "temperature"], "less_than_equal"),
        ({"temperature": "nan"}, ["body", "temperature"], "greater_than_equal"),
        ({"temperature": "hot"}, ["body", "temperature"], "float_parsing"),
    ],
)
def test_wrong_fields_of_the_form_are_named(
    service: Service, fields: dict[str, Any], location: list[Any], kind: str
) -> None:
    (wrong,) = refusal(transcribe(service, **fields), 422)

    assert (wrong["loc"], wrong["type"]) == (location, kind)


def test_a_form_without_its_fields_names_them(bare_service: Service) -> None:
    with bare_service.http as http:
        empty = http.post(f"{MOUNT}/audio/transcriptions", json={})
        fileless = http.post(f"{MOUNT}/audio/transcriptions", files={"model": (None, "x")})

    assert [wrong["loc"] for wrong in refusal(empty, 422)] == [["body", "file"], ["body", "model"]]
    assert [wrong["loc"] for wrong in refusal(fileless, 422)] == [["body", "file"]]


def test_a_form_without_a_file_is_read_as_clients_send_it_then(bare_service: Service) -> None:
    with bare_service.http as http:
        fileless = http.post(f"{MOUNT}/audio/transcriptions", data={"temperature": "2", "prompt": ""})
        as_text = http.post(
            f"{MOUNT}/audio/transcriptions", files={"model": (None, ""), "file": (None, "words")}
        )

    assert [wrong["loc"][1] for wrong in refusal(fileless, 422)] == ["file", "model", "temperature"]
    assert [(wrong["loc"][1], wrong["type"]) for wrong in refusal(as_text, 422)] == [
        ("file", "value_error"),
        ("model", "missing"),
    ]


@pytest.mark.parametrize("field", ["temperature", "response_format", "prompt", "language"])
def test_an_empty_field_is_its_default_and_a_file_that_is_not_asked_for_no_matter(
    service: Service, field: str
) -> None:
    with service.http as http:
        answer = http.post(
            f"{MOUNT}/audio/transcriptions",
            data={"model": SPEECH, field: ""},
            files={"cover": ("a.png", bytes(100_000)), "file": ("jfk.wav", jfk_wav().read_bytes())},
        )

    assert "your country" in answer_of(answer)["text"]


@pytest.mark.parametrize("extra", [1, 2 << 20])
def test_audio_beyond_20_mib_is_refused(bare_service: Service, extra: int) -> None:
    with bare_service.http as http:
        answers = [
            http.post(
                f"{MOUNT}/audio/transcriptions", data={"model": "x"}, files={"file": ("a.wav", bytes(size))}
            )
            for size in ((20 << 20) + extra, 20 << 20)
        ]

    assert refusal(answers[0], 413) == "File size limit exceeded (max: 20971520 bytes)."
    assert refusal(answers[1], 404) == "Model not found."
