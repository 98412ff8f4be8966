"""Text completions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.api.asking import tokens
from tests.service import CHAT, Service


def complete(service: Service, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post("/v1/completions", json={"model": CHAT, "prompt": "Once upon a time", **fields})


def test_a_completion_has_the_published_shape(client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="Once upon a time", temperature=0)

    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16


def test_several_prompts_give_one_choice_each_in_order(service: Service) -> None:
    prompts = ["The sea is", "Two and two are", "Paris is the"]
    together = complete(service, prompt=prompts, temperature=0, max_tokens=8).json()
    alone = [complete(service, prompt=p, temperature=0, max_tokens=8).json() for p in prompts]

    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    assert [c["text"] for c in together["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert together["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in alone)


def test_token_ids_are_prompts_too(service: Service) -> None:
    one = complete(service, prompt=[504, 3575, 314], temperature=0, max_tokens=4)
    several = complete(service, prompt=[[504, 3575, 314], [504]], temperature=0, max_tokens=4)

    assert one.json()["usage"]["prompt_tokens"] == 3
    assert several.json()["usage"]["prompt_tokens"] == 4
    assert several.json()["choices"][0]["text"] == one.json()["choices"][0]["text"]


def test_streams_of_several_prompts_add_up_to_the_whole(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": CHAT,
        "prompt": ["The sea is", "Two and two are"],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.completions.create(**fields)
    texts = ["", ""]
    last = None
    for last in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in last.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in whole.choices]
    assert last is not None
    assert tokens(last.usage) == tokens(whole.usage)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": []}, "please provide at least one prompt"),
        ({"prompt": ""}, "Either prompt or prompt_ids should be provided."),
        ({"prompt": ["a", ""]}, "Either prompt or prompt_ids should be provided."),
        ({"prompt": ["a", 1]}, "prompt must be a string, array of strings"),
        ({"prompt": [1, True]}, "prompt must be a string, array of strings"),
        ({"prompt": [[1], "a"]}, "prompt must be a string, array of strings"),
        ({"prompt": [999_999]}, "Token id 999999 is out of vocabulary"),
        ({"prompt": [-1]}, "Token id -1 is out of vocabulary"),
        ({"suffix": "end"}, "suffix is not currently supported"),
        ({"logprobs": -1}, "if passed, `logprobs` must be a positive value."),
        (
            {"stream_options": {"include_usage": True}},
            "Stream options can only be defined when stream is True.",
        ),
        ({"max_tokens": 9000}, "maximum context length is 8192 tokens"),
        ({"prompt": {"text": "a"}}, "prompt"),
    ],
)
def test_what_is_wrong_is_said_in_the_contracts_words(
    service: Service, fields: dict[str, Any], words: str
) -> None:
    response = complete(service, **fields)

    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_an_empty_suffix_and_empty_stream_options_are_as_absent(service: Service) -> None:
    assert complete(service, suffix="", stream_options={}, max_tokens=1).status_code == 200
