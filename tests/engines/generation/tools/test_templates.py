"""The chat templates that recipes may name render tools, and what their parsers read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.generation.text.chat_template import ChatTemplate
from appliance.engines.generation.tools.formats import HERMES, LLAMA3_JSON, ToolFormat
from appliance.engines.generation.tools.syntax import Tool
from tests.engines.generation.tools.test_formats import parsed

TEMPLATES = Path(__file__).resolve().parents[4] / "model_packs" / "templates"
# SmolLM2-Instruct's own template, as published with the model.
PLAIN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Tell the <weather> & «time»",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
CALLS: list[dict[str, Any]] = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Å"}}},
    {"id": "2", "type": "function", "function": {"name": "time", "arguments": "{not json"}},
]
HELLO = {"role": "user", "content": "Hello"}
CONVERSATION: list[dict[str, Any]] = [
    HELLO,
    {"role": "assistant", "content": "Let me look.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "tool", "tool_call_id": "2", "content": "noon"},
    {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
    {"role": "function", "name": "weather", "content": "sun"},
    {"role": "assistant", "content": "It is sunny."},
]


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text("utf-8"), {"bos_token": "<|begin_of_text|>"})


def render(source: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    return source.render(messages, **{"max_characters": 100_000, **options})


TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "critic"]),
            "content": st.one_of(
                st.text(max_size=20), st.sampled_from([" <b> & 'x' ", "\n\n", "{{ x }}", "<tools>", "a\r\n"])
            ),
        }
    ),
    max_size=4,
)


@given(messages=TURNS, header=st.booleans(), tools=st.sampled_from([None, []]))
def test_without_tools_the_prompt_is_the_model_s_own(
    messages: list[dict[str, Any]], header: bool, tools: Any
) -> None:
    expected = render(ChatTemplate(PLAIN, {}), messages, add_generation_prompt=header)
    assert render(template("chatml-hermes"), messages, add_generation_prompt=header, tools=tools) == expected


def test_a_hermes_conversation() -> None:
    prompt = render(template("chatml-hermes"), CONVERSATION, tools=TOOLS)
    system, rest = prompt.split("<|im_end|>\n", 1)
    assert system.startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n\n# Tools\n\n"
    )
    listed = system.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in listed] == TOOLS
    assert "«time»" in listed[0]
    assert system.endswith("\n</tool_call>")
    assert rest == (
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nLet me look."
        '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Å"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "time", "arguments": {not json}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Å"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIt is sunny.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_caller_s_system_message_comes_before_the_tools() -> None:
    messages = [{"role": "system", "content": "Be brief."}, HELLO]
    prompt = render(template("chatml-hermes"), messages, tools=TOOLS)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert "SmolLM" not in prompt
    prompt = render(template("llama3-json"), messages, tools=TOOLS)
    assert prompt.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.\n\nYou can call"
    )
    assert prompt.count("<|start_header_id|>system") == 1


def test_a_llama_conversation() -> None:
    prompt = render(template("llama3-json"), CONVERSATION, tools=TOOLS)
    system, rest = prompt.split("<|eot_id|>", 1)
    assert system.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou can call")
    assert [json.loads(line) for line in system.split("\n") if line.startswith('{"type"')] == TOOLS
    turns = [
        ("user", "Hello"),
        (
            "assistant",
            (
                'Let me look.\n\n{"name": "weather", "parameters": {"city": "Å"}}; '
                '{"name": "time", "parameters": {not json}'
            ),
        ),
        ("ipython", "rain"),
        ("ipython", "noon"),
        ("assistant", '{"name": "weather", "parameters": {"city": "Å"}}'),
        ("ipython", "sun"),
        ("assistant", "It is sunny."),
    ]
    written = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns
    )
    assert rest == written + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_plain_llama_turns() -> None:
    assert render(template("llama3-json"), [HELLO], add_generation_prompt=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    )


@pytest.mark.parametrize(
    ("name", "format_", "start", "end"),
    [
        ("chatml-hermes", HERMES, "<|im_start|>assistant\n", "<|im_end|>"),
        ("llama3-json", LLAMA3_JSON, "<|end_header_id|>\n\n", "<|eot_id|>"),
    ],
)
def test_the_parser_reads_the_calls_that_the_template_writes(
    name: str, format_: ToolFormat, start: str, end: str
) -> None:
    arguments = {"city": 'Å "x" \\ </tool_call>', "n": [{"a": None}]}
    calls = [{"function": {"name": each, "arguments": arguments}} for each in ("weather", "time")]
    prompt = render(template(name), [HELLO, {"role": "assistant", "content": "", "tool_calls": calls}])
    text = prompt.split("Hello", 1)[1].split(start, 1)[1].split(end)[0]
    read = parsed(format_, text, tools=[Tool(name="weather"), Tool(name="time")])
    assert read == [(each, json.dumps(arguments, ensure_ascii=False)) for each in ("weather", "time")]
