"""A stream says what the whole answer says: text, log probabilities, endings and counts, chunk by chunk."""

from __future__ import annotations

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
    post_completion,
    text,
    tokens,
)
from tests.service import Service

WRITERS = [
    "Напиши два слова по-русски: привет, мир.",
    "Repeat: 你好世界，今天天气很好",
    "Repeat these: 🌈🎉👩‍👩‍👧‍👦 and 🇫🇷",
]
VARIANTS: list[dict[str, Any]] = [
    {"n": 2},
    {"stop": ["a", "\n\n", "é"], "n": 2},
    {"stop": ["the"], "include_stop_str_in_output": True},
    {"logprobs": True, "top_logprobs": 2},
    {"skip_special_tokens": False, "min_tokens": 3},
]


@pytest.mark.parametrize("words", WRITERS)
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_chat_stream_adds_up_to_the_whole(service: Service, words: str, fields: dict[str, Any]) -> None:
    asked = {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 20,
        "temperature": 1,
        "seed": 5,
        **fields,
    }
    whole = chat(service, **asked)
    events = chat_events(service, **asked)

    joined = joined_chat(events)
    for choice in whole["choices"]:
        streamed = joined[choice["index"]]
        assert streamed["content"] == choice["message"]["content"]
        assert streamed["finish_reason"] == choice["finish_reason"]
        assert streamed["stop_reason"] == choice["stop_reason"]
        assert streamed["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
    assert len(joined) == len(whole["choices"])
    pieces = [c["delta"].get("content", "") for event in events for c in event["choices"]]
    assert not any("\ud800" <= character <= "\udfff" for piece in pieces for character in piece)


@pytest.mark.parametrize("words", WRITERS)
@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"stop": ["a", "\n\n"]}, {"logprobs": 2}, {"logprobs": 1, "echo": True, "n": 2}],
    ids=str,
)
def test_a_completion_stream_adds_up_to_the_whole(
    service: Service, words: str, fields: dict[str, Any]
) -> None:
    asked = {"prompt": [words, "Hello"], "max_tokens": 16, "temperature": 1, "seed": 6, **fields}
    whole = complete(service, **asked)
    joined = joined_completions(completion_events(service, **asked))

    assert len(joined) == len(whole["choices"])
    for choice in whole["choices"]:
        streamed = joined[choice["index"]]
        for key in ("text", "logprobs", "finish_reason", "stop_reason"):
            assert streamed[key] == choice[key], key


def test_roles_come_first_in_index_order_one_choice_a_chunk(service: Service) -> None:
    events = chat_events(service, n=4, temperature=1)

    assert [event["choices"][0]["index"] for event in events[:4]] == [0, 1, 2, 3]
    for event in events[:4]:
        assert event["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert event["choices"][0]["finish_reason"] is None
    for event in events:
        assert event["object"] == "chat.completion.chunk"
        assert len(event["choices"]) == 1
    assert not any("role" in event["choices"][0]["delta"] for event in events[4:])
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1


def test_no_chunk_is_empty(service: Service) -> None:
    # Stop strings and characters of several bytes hold text back.
    asked = {
        "messages": [{"role": "user", "content": WRITERS[2]}],
        "stop": ["\n\nzzz", " q"],
        "logprobs": True,
        "max_tokens": 24,
    }
    events = chat_events(service, **asked)

    for event in events[1:-1]:
        choice = event["choices"][0]
        assert choice["delta"].get("content") or choice["finish_reason"]
    for event in completion_events(service, prompt=WRITERS[2], max_tokens=16, stop=["\n\nzzz"]):
        choice = event["choices"][0]
        assert choice["text"] or choice["finish_reason"]


def test_the_usage_chunk_sums_up_all_choices(service: Service) -> None:
    asked = {"n": 3, "temperature": 1, "seed": 2, "max_tokens": 6}
    whole = chat(service, **asked)
    events = chat_events(service, **asked, stream_options={"include_usage": True})

    assert events[-1]["choices"] == []
    assert tokens(events[-1]["usage"]) == tokens(whole["usage"])
    assert all(event["usage"] is None for event in events[:-1])
    assert whole["usage"]["completion_tokens"] > 6
    completions = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 4, "temperature": 0}
    counted = complete(service, **completions)["usage"]
    last = completion_events(service, **completions, stream_options={"include_usage": True})[-1]
    assert (last["choices"], tokens(last["usage"])) == ([], tokens(counted))
    assert counted["completion_tokens"] == 16


def test_without_include_usage_there_is_no_usage_key(service: Service) -> None:
    for options in (None, {}, {"include_usage": False, "continuous_usage_stats": True}):
        events = chat_events(service, stream_options=options)
        assert not any("usage" in event for event in events)


@pytest.mark.parametrize("options", [{"continuous_usage_stats": True}, {"include_usage": True}], ids=str)
def test_continuous_usage_counts_up_to_the_whole(service: Service, options: dict[str, bool]) -> None:
    options = {**options, "continuous_usage_stats": True}
    events = chat_events(service, n=2, temperature=1, stream_options=options)

    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[:2] == [0, 0]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2]
    assert events[-1]["choices"] == []


def test_with_a_length_limit_the_last_chunk_says_so(service: Service) -> None:
    last = chat_events(service, max_tokens=3, ignore_eos=True)[-1]["choices"][0]

    assert last["finish_reason"] == "length"
    assert last["stop_reason"] is None


def test_completions_known_only_as_a_whole_are_one_event(service: Service) -> None:
    for fields in (
        {"best_of": 3, "n": 1, "temperature": 1, "seed": 4},
        {"use_beam_search": True, "n": 2, "temperature": 0},
    ):
        whole = complete(service, max_tokens=6, **fields)
        events = completion_events(service, max_tokens=6, stream_options={"include_usage": True}, **fields)

        assert len(events) == 1
        assert events[0]["object"] == "text_completion"
        assert events[0]["choices"] == whole["choices"]
        assert tokens(events[0]["usage"]) == tokens(whole["usage"])


def test_chats_known_only_as_a_whole_are_ordinary_streams(service: Service) -> None:
    for fields in (
        {"best_of": 4, "n": 2, "temperature": 1, "seed": 4},
        {"use_beam_search": True, "n": 2, "temperature": 0, "logprobs": True, "top_logprobs": 1},
    ):
        whole = chat(service, max_tokens=6, **fields)
        events = chat_events(service, max_tokens=6, stream_options={"include_usage": True}, **fields)

        assert [event["choices"][0]["delta"].get("role") for event in events[:2]] == ["assistant"] * 2
        joined = joined_chat(events)
        for choice in whole["choices"]:
            assert joined[choice["index"]]["content"] == choice["message"]["content"]
            if choice["logprobs"] is not None:
                assert joined[choice["index"]]["logprobs"] == choice["logprobs"]["content"]
        assert tokens(events[-1]["usage"]) == tokens(whole["usage"])


def test_every_refusal_of_a_stream_is_a_status_and_json(service: Service) -> None:
    refused: list[dict[str, Any]] = [
        {"prompt": "word " * 9000},
        {"max_tokens": 9000},
        {"model": "nope"},
        {"logit_bias": {"49152": 1}},
        {"prompt": [999_999]},
    ]
    for fields in refused:
        response = post_completion(service, **{"stream": True, **fields})
        assert response.status_code in (400, 404)
        assert response.headers["content-type"].startswith("application/json")
        assert response.json()["error"]["message"]


def test_echoed_streams_begin_with_the_prompt(service: Service) -> None:
    asked = {"prompt": ["One two", "Three"], "echo": True, "max_tokens": 3, "temperature": 0}
    first: dict[int, str] = {}
    for event in completion_events(service, **asked):
        choice = event["choices"][0]
        first.setdefault(choice["index"], choice["text"])
    whole = complete(service, **asked)

    assert first[0].startswith("One two")
    assert first[1].startswith("Three")
    assert len(first[0]) > len("One two")
    assert text(whole, 1).startswith("Three")


def test_a_chat_echo_is_a_chunk_of_its_own(service: Service) -> None:
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]
    asked = {
        "messages": messages,
        "echo": True,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "temperature": 0,
    }
    whole = chat(service, **asked)
    events = chat_events(service, **asked)

    assert content(whole).startswith("One, two,")
    assert events[1]["choices"][0]["delta"] == {"content": "One, two,"}
    assert joined_chat(events)[0]["content"] == content(whole)
