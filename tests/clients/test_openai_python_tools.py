"""Tools with the official Python client: forced calls, streams, strict tools parsed, and the turn after."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai import OpenAI

from tests.api.asking import tokens
from tests.clients.test_openai_python import client_of
from tests.service import CHAT, Service


class GetWeather(pydantic.BaseModel):
    """Tell the weather of a city."""

    city: Literal["Oslo", "Rome"]
    unit: Literal["celsius", "kelvin"]


class Wait(pydantic.BaseModel):
    """Wait some hours."""

    hours: int = pydantic.Field(ge=1, le=9)


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "day": {"type": "integer", "maximum": 31}},
            "required": ["city", "day"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
QUESTION = [{"role": "user", "content": "How is the weather in Oslo?"}]
ASKED: dict[str, Any] = {
    "model": CHAT,
    "messages": QUESTION,
    "tools": [WEATHER, CLOCK],
    "max_tokens": 80,
    "temperature": 0,
}


@pytest.mark.parametrize(
    ("choice", "reason"), [(NAMED, "stop"), ("required", "tool_calls")], ids=["named", "required"]
)
def test_a_forced_call_is_the_same_whole_and_streamed(client: OpenAI, choice: Any, reason: str) -> None:
    asked = {**ASKED, "tool_choice": choice, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]

    assert whole.message.tool_calls is not None
    assert streamed.message.tool_calls is not None
    (call,), (same,) = whole.message.tool_calls, streamed.message.tool_calls
    assert call.type == "function"
    assert call.id
    assert (call.function.name, call.function.arguments) == (same.function.name, same.function.arguments)
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Oslo", "Rome")
        assert arguments["day"] <= 31
    else:
        assert (call.function.name, arguments) == ("clock", {})
    assert whole.message.content is None
    assert (whole.finish_reason, streamed.finish_reason) == (reason, reason)
    assert "tool_calls.function.arguments.done" in kinds
    assert ("tool_calls.function.arguments.delta" in kinds) == (call.function.arguments != "")


def test_compressa_calls_named_tools(service: Service) -> None:
    client = client_of(service, "/compressa/v1")
    choice = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0]

    assert choice.message.tool_calls is not None
    assert choice.message.content == ""
    with pytest.raises(openai.BadRequestError, match=r"Currently only named tools are supported\."):
        client.chat.completions.create(**ASKED, tool_choice="required")


def test_strict_tools_are_parsed_into_the_models_of_the_caller(client: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Wait)]
    asked: dict[str, Any] = {**ASKED, "tools": tools, "tool_choice": "required"}
    message = client.chat.completions.parse(**asked).choices[0].message
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message

    assert message.tool_calls
    assert streamed.tool_calls is not None
    for call, same in zip(message.tool_calls, streamed.tool_calls, strict=True):
        made = call.function.parsed_arguments
        assert isinstance(made, GetWeather if call.function.name == "GetWeather" else Wait)
        assert same.function.parsed_arguments == made


def test_the_result_of_a_call_goes_into_the_next_turn(client: OpenAI) -> None:
    first = client.chat.completions.create(**ASKED, tool_choice=NAMED)
    message = first.choices[0].message
    assert message.tool_calls
    turn = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is sunny, 21 degrees."}
    # As callers do: the very message object goes back.
    asked: dict[str, Any] = {**ASKED, "messages": [*QUESTION, message, turn]}
    second = client.chat.completions.create(**asked, tool_choice="none")
    as_text = client.chat.completions.create(
        **{**asked, "messages": [*QUESTION, message.model_dump(), turn]}, tool_choice="none"
    )

    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls
    assert second.choices[0].message.content == as_text.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert tokens(second.usage) == tokens(as_text.usage)
    # With the tools still offered the prompt goes on from the first one.
    offered = client.chat.completions.create(**asked)
    assert offered.usage is not None
    assert offered.usage.prompt_tokens > first.usage.prompt_tokens


def test_what_the_model_decides_is_the_same_whole_and_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED).choices[0]
    with client.chat.completions.stream(**ASKED) as stream:
        streamed = stream.get_final_completion().choices[0]

    def calls(message: Any) -> list[tuple[str, str]]:
        return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]

    assert calls(whole.message) == calls(streamed.message)
    assert (whole.message.content or None) == (streamed.message.content or None)
    assert whole.finish_reason == streamed.finish_reason
    assert whole.finish_reason == "length" or (whole.finish_reason == "tool_calls") == bool(
        calls(whole.message)
    )


def test_several_choices_call_for_themselves(client: OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "temperature": 1, "seed": 2, "n": 3, "tool_choice": NAMED}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()

    for choice, same in zip(whole.choices, streamed.choices, strict=True):
        assert choice.message.tool_calls
        assert same.message.tool_calls
        assert choice.message.tool_calls[0].type == "function"
        assert (
            choice.message.tool_calls[0].function.arguments == same.message.tool_calls[0].function.arguments
        )
