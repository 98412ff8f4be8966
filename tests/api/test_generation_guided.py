"""Answers that are held to a form: in both routes, streamed or not, with choices and log probabilities."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.api.asking import (
    chat,
    chat_events,
    complete,
    completion_events,
    content,
    joined_chat,
    joined_completions,
    post_chat,
    post_completion,
    text,
)
from tests.service import Service

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
COUNTED = re.compile(r"(one|two) (cat|dog)s?")


def is_coloured(words: str) -> bool:
    value = json.loads(words)
    return (
        set(value) == {"colour", "count"} and value["colour"] in ("red", "blue") and 0 <= value["count"] <= 9
    )


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"guided_choice": ["yes, indeed", "no"]}, lambda words: words in ("yes, indeed", "no")),
    ({"guided_regex": COUNTED.pattern}, COUNTED.fullmatch),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"}, is_coloured),
    ({"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "outlines"}, is_coloured),
    ({"guided_grammar": 'start: "a" | "b" "c"'}, lambda words: words in ("a", "bc")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        is_coloured,
    ),
]


@pytest.mark.parametrize(("fields", "fits"), FORMS, ids=[next(iter(fields)) for fields, _ in FORMS])
def test_every_choice_has_the_form_whole_and_streamed(
    service: Service, fields: dict[str, Any], fits: Any
) -> None:
    asked = {"n": 3, "temperature": 1, "seed": 1, "max_tokens": 60, **fields}
    answer = chat(service, **asked, logprobs=True)
    joined = joined_chat(chat_events(service, **asked, logprobs=True))
    completed = complete(service, **asked)
    streamed = joined_completions(completion_events(service, **asked))

    for index in range(3):
        assert fits(content(answer, index)), content(answer, index)
        assert answer["choices"][index]["finish_reason"] == "stop"
        assert joined[index]["content"] == content(answer, index)
        assert joined[index]["logprobs"] == answer["choices"][index]["logprobs"]["content"]
        assert fits(text(completed, index)), text(completed, index)
        assert streamed[index]["text"] == text(completed, index)


def test_a_json_object_is_one(service: Service) -> None:
    answer = chat(
        service,
        messages=[{"role": "user", "content": 'Return {"a": 1} as JSON.'}],
        response_format={"type": "json_object"},
        max_tokens=60,
        temperature=0,
    )

    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content(answer)), dict)
    assert content(answer).lstrip().startswith("{")


def test_the_limit_may_end_it_first(service: Service) -> None:
    choice = chat(service, guided_regex="a{50}", max_tokens=2)["choices"][0]

    assert choice["finish_reason"] == "length"
    assert set(choice["message"]["content"]) == {"a"}


def test_a_finished_form_ends_before_min_tokens(service: Service) -> None:
    answer = chat(service, guided_choice=["yes"], min_tokens=8, max_tokens=8, ignore_eos=True)

    assert content(answer) == "yes"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_stops_still_apply(service: Service) -> None:
    choice = chat(service, guided_choice=["yes, indeed"], stop=", ")["choices"][0]

    assert (choice["message"]["content"], choice["stop_reason"]) == ("yes", ", ")


def test_what_the_form_forbids_is_minus_infinity_as_a_number(service: Service) -> None:
    answer = complete(service, guided_choice=["yes"], logprobs=20, max_tokens=3)

    for best in answer["choices"][0]["logprobs"]["top_logprobs"]:
        assert min(best.values()) == -9999.0
        assert max(best.values()) > -9999.0


def test_an_enforced_answer_is_held_to_no_form(service: Service) -> None:
    assert content(chat(service, guided_choice=["yes"], enforced_str="no")) == "no"


def test_beams_have_the_form_too(service: Service) -> None:
    answer = complete(service, guided_choice=["yes", "no", "maybe"], use_beam_search=True, n=2, temperature=0)

    assert len({text(answer, 0), text(answer, 1)} & {"yes", "no", "maybe"}) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"guided_regex": "a", "guided_choice": ["a"]},
            "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or 'guided_choice').",
        ),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "("}, "regular expression"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "nothing"}}, ""),
        ({"guided_grammar": "start: other"}, ""),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_decoding_backend": "x"}, "Unknown guided decoding backend 'x'."),
    ],
)
def test_what_is_no_form_is_refused_before_anything_is_produced(
    service: Service, fields: dict[str, Any], words: str
) -> None:
    for post in (post_chat, post_completion):
        for stream in (False, True):
            response = post(service, **fields, stream=stream)
            assert response.status_code == 400
            error = response.json()["error"]
            assert words in error["message"]
            assert error["param"] is None or error["param"].partition(".")[0] in fields
