"""Tool calls over the chat route: forced, free and none, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from tests.api.asking import chat, chat_events, content, post_chat, tokens
from tests.pack_variants import chat_variant
from tests.service import Service, running_service

HERMES, PLAIN = "smollm2-hermes", "smollm2-plain"
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ASKED: dict[str, Any] = {
    "model": HERMES,
    "messages": [{"role": "user", "content": "How is the weather in Oslo?"}],
    "tools": TOOLS,
    "max_tokens": 48,
    "temperature": 0,
}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.fixture(scope="module")
def tools_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("tools") / "data"
    chat_variant(data_dir / "packs", HERMES, tool_format="hermes", template="chatml-hermes")
    chat_variant(data_dir / "packs", PLAIN, tool_format="none")
    with running_service(data_dir, APPLIANCE_GENERATION_QUEUE="1") as service:
        yield service


def assembled(events: list[dict[str, Any]]) -> Any:
    """Return what OpenAI's own client makes of a stream."""
    state = ChatCompletionStreamState()
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    return state.get_final_completion().choices[0]


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [(named("weather"), {"weather"}, "stop"), ("required", {"weather", "time"}, "tool_calls")],
    ids=["named", "required"],
)
def test_a_forced_call_is_valid_under_its_schema(
    tools_service: Service, choice: Any, names: set[str], reason: str
) -> None:
    asked = {**ASKED, "tool_choice": choice, "parallel_tool_calls": False}
    whole = chat(tools_service, **asked)["choices"][0]
    streamed = assembled(chat_events(tools_service, **asked))

    (call,) = whole["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] in names
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Oslo", "Rome")
    assert whole["message"]["content"] is None
    assert whole["finish_reason"] == reason
    (same,) = streamed.message.tool_calls
    assert (same.function.name, same.function.arguments) == (
        call["function"]["name"],
        call["function"]["arguments"],
    )
    assert streamed.finish_reason == reason


def test_a_function_without_parameters_has_empty_arguments(tools_service: Service) -> None:
    (call,) = chat(tools_service, **ASKED, tool_choice=named("time"))["choices"][0]["message"]["tool_calls"]

    assert call["function"] == {"name": "time", "arguments": "{}"}


def test_a_call_that_the_model_decides_on_is_found_in_its_text(tools_service: Service) -> None:
    said = "Let me look.\n"
    asked = {**ASKED, "guided_choice": [said + CALL], "tool_choice": "auto", "logprobs": True}
    whole = chat(tools_service, **asked)
    events = chat_events(tools_service, **asked)

    choice = whole["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == said.strip()
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }
    deltas = [event["choices"][0]["delta"] for event in events]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0] * len(calls)
    assert [("id" in call, "name" in call["function"]) for call in calls] == [(True, True)] + [
        (False, False)
    ] * (len(calls) - 1)
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Oslo"}'
    assert deltas[-1] == {}
    assert not any("tool_call>" in (delta.get("content") or "") for delta in deltas)
    entries = [
        entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert entries == choice["logprobs"]["content"]


def test_parallel_calls_come_in_order(tools_service: Service) -> None:
    both = CALL + "\n" + CALL.replace("Oslo", "Rome")
    asked = {**ASKED, "guided_choice": [both], "tool_choice": "auto", "max_tokens": 80}
    calls = chat(tools_service, **asked)["choices"][0]["message"]["tool_calls"]
    streamed = assembled(chat_events(tools_service, **asked)).message.tool_calls

    cities = [json.loads(call["function"]["arguments"])["city"] for call in calls]
    assert cities == ["Oslo", "Rome"]
    assert len({call["id"] for call in calls}) == 2
    assert [json.loads(call.function.arguments)["city"] for call in streamed] == cities
    one = chat(tools_service, **asked, parallel_tool_calls=False)["choices"][0]["message"]["tool_calls"]
    assert len(one) == 1


def test_choices_have_calls_of_their_own(tools_service: Service) -> None:
    choices = chat(tools_service, **ASKED, tool_choice=named("weather"), n=2)["choices"]

    ids = [choice["message"]["tool_calls"][0]["id"] for choice in choices]
    assert len(set(ids)) == 2


def test_tools_of_no_choice_are_not_offered(tools_service: Service) -> None:
    none = chat(tools_service, **ASKED, tool_choice="none")
    without = chat(tools_service, **{**ASKED, "tools": None})
    offered = chat(tools_service, **ASKED)

    assert none["usage"]["prompt_tokens"] == without["usage"]["prompt_tokens"]
    assert offered["usage"]["prompt_tokens"] > none["usage"]["prompt_tokens"]
    assert content(none) == content(without)
    assert none["choices"][0]["message"]["tool_calls"] == []


def test_legacy_functions_are_answered_in_their_own_shape(tools_service: Service) -> None:
    functions = [tool["function"] for tool in TOOLS]
    asked = {**ASKED, "tools": None, "functions": functions, "function_call": {"name": "weather"}}
    choice = chat(tools_service, **asked)["choices"][0]
    events = chat_events(tools_service, **asked)

    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "weather"
    assert choice["message"]["tool_calls"] == []
    pieces = [event["choices"][0]["delta"].get("function_call", {}) for event in events]
    assert [piece["name"] for piece in pieces if "name" in piece] == ["weather"]
    arguments = "".join(piece.get("arguments", "") for piece in pieces)
    assert arguments == choice["message"]["function_call"]["arguments"]


def test_calls_and_their_results_go_back_into_the_prompt(tools_service: Service) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *ASKED["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "unknown", "content": "Sunny."},
    ]
    answer = chat(tools_service, **{**ASKED, "messages": messages}, tool_choice="none")
    legacy = [
        *ASKED["messages"],
        {"role": "assistant", "content": None, "function_call": call["function"]},
        {"role": "function", "name": "weather", "content": "Sunny."},
    ]
    old = chat(tools_service, **{**ASKED, "messages": legacy}, tool_choice="none")

    assert content(answer)
    assert tokens(old["usage"]) == tokens(answer["usage"])


def test_an_enforced_answer_is_text_even_when_it_spells_a_call(tools_service: Service) -> None:
    answer = chat(tools_service, **{**ASKED, "max_tokens": None}, enforced_str=CALL)

    assert content(answer) == CALL
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"tool_choice": "required", "guided_choice": ["a"]},
            "You can only either use guided decoding or tools, not both.",
        ),
        (
            {"tool_choice": named("weather"), "response_format": {"type": "json_object"}},
            "You can only either use guided decoding or tools, not both.",
        ),
        (
            {"tool_choice": named("nothing")},
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
        ),
        ({"tool_choice": "auto", "tools": []}, "When using `tool_choice`, `tools` must be set."),
        ({"tool_choice": "sometimes"}, '`tool_choice` must either be a named tool, "auto", or "none".'),
        ({"tool_choice": {"name": "weather"}}, "Incorrectly formatted `tool_choice`."),
        ({"model": PLAIN}, f"The model `{PLAIN}` does not support tools."),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_cannot_be_is_refused_in_words(
    tools_service: Service, fields: dict[str, Any], words: str, stream: bool
) -> None:
    response = post_chat(tools_service, **{**ASKED, **fields}, stream=stream)

    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_compressas_content_beside_a_named_call_is_empty_text(tools_service: Service) -> None:
    response = post_chat(tools_service, "/compressa/v1", **ASKED, tool_choice=named("time"))

    message = response.json()["choices"][0]["message"]
    assert (message["content"], len(message["tool_calls"])) == ("", 1)


def test_compactifai_takes_a_tools_bare_name(tools_service: Service) -> None:
    response = post_chat(tools_service, "/compactifai/v1", **ASKED, tool_choice="time")

    assert response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "time"


def test_a_full_queue_is_a_503_that_says_when_to_come_back(tools_service: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    asked: dict[str, Any] = {"model": PLAIN, "n": 16, "temperature": 1, "max_tokens": 24, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        responses = list(
            pool.map(lambda stream: post_chat(tools_service, stream=stream, **asked), [False, True] * 3)
        )

    refused = [response for response in responses if response.status_code == 503]
    assert refused
    assert len(refused) < len(responses)
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "server_error"
