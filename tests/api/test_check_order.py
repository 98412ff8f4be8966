"""In which order a request is checked: limits, then its body, then whether there is such a model for it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.people import Person, limits, make_person, make_role, router_id
from tests.service import CHAT, EMBEDDING, SPEECH, Service

OPENGATELLM = "/opengatellm/v1"
SHOWN = "x-ratelimit-remaining-requests"
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("/chat/completions", {"messages": "none"}),
    ("/completions", {"prompt": 5}),
    ("/embeddings", {"input": 5}),
    ("/rerank", {"query": 5, "documents": ["a"]}),
]


def transcribe(person: Person, mount: str, **fields: str) -> httpx.Response:
    with person.http as http:
        return http.post(f"{mount}/audio/transcriptions", data=fields, files={"file": ("a.wav", b"no audio")})


@pytest.mark.parametrize(("path", "body"), WRONG)
def test_a_wrong_body_is_said_before_an_unknown_model(
    service: Service, path: str, body: dict[str, Any]
) -> None:
    status = 422 if path == "/rerank" else 400
    with service.http as http:
        for name in ("no-such-model", SPEECH):
            answer = http.post(f"/v1{path}", json={"model": name, **body})
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["param"] in body


def test_a_wrong_body_is_said_before_a_model_of_another_task(service: Service) -> None:
    with service.http as http:
        answer = http.post(f"{OPENGATELLM}/chat/completions", json={"model": EMBEDDING, "messages": "none"})
        right = http.post(f"{OPENGATELLM}/chat/completions", json={"model": EMBEDDING, "messages": []})

    assert answer.status_code == 422
    assert [wrong["loc"] for wrong in answer.json()["detail"]] == [["body", "messages"]]
    assert right.json() == {"detail": "Wrong model type."}


@pytest.mark.parametrize(
    ("path", "body", "location"),
    [
        ("/embeddings", {"input": []}, ["input"]),
        ("/embeddings", {"input": [1.5]}, ["input", "list[int]", 0]),
        ("/embeddings", {"input": "a", "encoding_format": "base64"}, ["encoding_format"]),
        ("/rerank", {"documents": ["a"]}, ["query"]),
        ("/rerank", {"query": "a", "prompt": "a", "documents": ["a"]}, []),
        ("/chat/completions", {"messages": [], "stop": list("abcde")}, ["stop"]),
        ("/ocr", {"document": {"type": "image_url", "image_url": "x"}, "pages": "2-1"}, ["pages"]),
    ],
)
def test_a_rule_that_no_type_states_is_said_before_an_unknown_model(
    service: Service, path: str, body: dict[str, Any], location: list[Any]
) -> None:
    with service.http as http:
        for name in ("no-such-model", SPEECH):
            answer = http.post(f"{OPENGATELLM}{path}", json={"model": name, **body})
            assert answer.status_code == 422, answer.text
            assert answer.json()["detail"][0]["loc"] == ["body", *location]


def test_the_query_is_checked_before_an_unknown_model(service: Service) -> None:
    body = {"model": "no-such-model", "messages": []}
    with service.http as http:
        answers = [
            http.post(f"{OPENGATELLM}/chat/completions", params={"required": value}, json=body)
            for value in ("perhaps", "true", "false")
        ]
    assert [answer.status_code for answer in answers] == [422, 403, 404]


def test_a_wrong_field_of_a_form_is_said_before_an_unknown_model(service: Service) -> None:
    person = make_person(service)
    for mount, status in (("/v1", 400), ("/compactifai/v1", 400), (OPENGATELLM, 422)):
        assert transcribe(person, mount, model="none", temperature="9").status_code == status
    answer = transcribe(person, "/v1", model="none", temperature="9").json()
    assert answer["error"]["param"] == "temperature"


def test_a_wrong_body_does_not_tell_a_forbidden_model_from_an_unknown_one(service: Service) -> None:
    three = limits(router_id(service, CHAT))[1:]
    person = make_person(service, make_role(service, limits=three))
    for messages, status in (("none", 400), ([{"role": "user", "content": "x"}], 404)):
        with person.http as http:
            answers = [
                http.post("/v1/chat/completions", json={"model": name, "messages": messages})
                for name in (CHAT, "none")
            ]
        assert [answer.status_code for answer in answers] == [status, status]
    with person.http as http:
        answer = http.post(f"{OPENGATELLM}/chat/completions", json={"model": CHAT, "messages": "none"})
    assert answer.json() == {"detail": "Insufficient permissions to access the model."}


@pytest.mark.parametrize(("mount", "status"), [("/v1", 400), ("/compactifai/v1", 400), (OPENGATELLM, 422)])
def test_a_form_with_a_wrong_field_counts_and_shows_the_limits(
    service: Service, mount: str, status: int
) -> None:
    person = make_person(service, make_role(service, limits=limits(router_id(service, SPEECH), rpm=2)))
    answers = [transcribe(person, mount, model=SPEECH, temperature="9") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [status, status, 429]
    assert [answer.headers[SHOWN] for answer in answers] == ["1", "0", "0"]
    assert "2 requests per minute exceeded (remaining: 0)." in answers[2].text


def test_a_request_to_a_model_of_another_task_counts_and_shows_the_limits(service: Service) -> None:
    person = make_person(service, make_role(service, limits=limits(router_id(service, CHAT), rpm=1)))
    answers = [transcribe(person, "/v1", model=CHAT) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [400, 429]
    assert [answer.headers[SHOWN] for answer in answers] == ["0", "0"]
