"""Where the strict mounts' generation routes differ from the union's, and that they do not elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import answer_of, events_of, post_chat, post_completion
from tests.service import Service

COMPRESSA, COMPACTIFAI = "/compressa/v1", "/compactifai/v1"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("mount", [COMPRESSA, COMPACTIFAI])
def test_every_mount_answers_and_streams(service: Service, mount: str) -> None:
    whole = answer_of(post_chat(service, mount, temperature=0))
    events = events_of(post_chat(service, mount, temperature=0, stream=True))
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    assert whole["id"].startswith("chatcmpl-")
    assert said == whole["choices"][0]["message"]["content"]
    assert answer_of(post_completion(service, mount))["object"] == "text_completion"


def test_compressa_has_no_choices_of_a_greedy_answer(service: Service) -> None:
    for post in (post_chat, post_completion):
        refused = post(service, COMPRESSA, n=2, temperature=0)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "best_of must be 1 when using greedy sampling.Got 2."
        assert post(service, COMPRESSA, n=2, temperature=0.5).status_code == 200


def test_compressas_temperature_is_not_0_unless_it_is_said(service: Service) -> None:
    asked: dict[str, Any] = {"n": 6, "max_tokens": 12}
    choices = answer_of(post_chat(service, COMPRESSA, **asked))["choices"]

    assert len({choice["message"]["content"] for choice in choices}) > 1


def test_compressa_offers_no_tools_unless_they_are_named(service: Service) -> None:
    assert post_chat(service, COMPRESSA, tools=TOOLS).status_code == 200
    for choice in ("auto", "required"):
        refused = post_chat(service, COMPRESSA, tools=TOOLS, tool_choice=choice)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "Currently only named tools are supported."


def test_compressa_knows_no_json_schema(service: Service) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    for post in (post_chat, post_completion):
        assert post(service, COMPRESSA, response_format=format_).status_code == 400
        assert post(service, COMPRESSA, response_format={"type": "text"}).status_code == 200


def test_compactifai_gives_one_choice(service: Service) -> None:
    for post in (post_chat, post_completion):
        for fields in ({"n": 2}, {"best_of": 2}):
            refused = post(service, COMPACTIFAI, temperature=1, **fields)
            assert refused.status_code == 400
            assert "must be at most 1, got 2." in refused.json()["error"]["message"]
        assert post(service, COMPACTIFAI, n=1).status_code == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_compactifais_limit_is_150000_tokens(service: Service, name: str) -> None:
    beyond = post_chat(service, COMPACTIFAI, **{"max_tokens": None, name: 150_001})
    within = post_chat(service, COMPACTIFAI, **{"max_tokens": None, name: 150_000})

    assert beyond.json()["error"]["message"] == f"{name} must be at most 150000, got 150001."
    assert within.json()["error"]["code"] == "context_length_exceeded"


def test_an_unknown_model_is_each_mounts_own(service: Service) -> None:
    for mount, status in (("/v1", 404), (COMPRESSA, 404), (COMPACTIFAI, 400)):
        response = post_chat(service, mount, model="nope")
        assert response.status_code == status
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("mount", [COMPRESSA, COMPACTIFAI])
def test_parameters_that_the_mount_does_not_speak_of_have_their_effect(service: Service, mount: str) -> None:
    answer = answer_of(
        post_chat(service, mount, temperature=0, logprobs=True, top_logprobs=2, max_tokens=3, ignore_eos=True)
    )
    assert len(answer["choices"][0]["logprobs"]["content"]) == 3
    echoed = answer_of(post_completion(service, mount, prompt="One two", echo=True, max_tokens=1))
    assert echoed["choices"][0]["text"].startswith("One two")
