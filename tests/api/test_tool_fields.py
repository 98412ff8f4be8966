"""What the tool fields of a chat request mean, and the shape of the calls in its answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from appliance.api.dialect import COMPACTIFAI, COMPRESSA, UNION, Dialect
from appliance.api.openai.generation.tool_fields import MAX_TOOLS, MAX_TOOLS_BYTES, ToolUse, tool_use
from appliance.engines.generation.tools.formats import HERMES, LLAMA3_JSON
from appliance.errors import InvalidRequestError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Body(msgspec.Struct, kw_only=True):
    """The fields of a chat request that are about tools."""

    model: str = "small"
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | msgspec.UnsetType | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOLS = [tool("weather", description="Tells it", parameters=SCHEMA, strict=True), tool("time")]


def use(dialect: Dialect = UNION, *, has_format: bool = True, **fields: Any) -> ToolUse:
    return tool_use(Body(**fields), dialect, has_format=has_format)


def refusal(dialect: Dialect = UNION, *, has_format: bool = True, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        use(dialect, has_format=has_format, **fields)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize("dialect", [UNION, COMPRESSA, COMPACTIFAI])
@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("choice", [None, "none"])
def test_without_tools_it_is_a_plain_chat(dialect: Dialect, tools: Any, choice: Any) -> None:
    assert use(dialect, tools=tools, tool_choice=choice, has_format=False) == ToolUse()
    assert ToolUse().turn(HERMES) is None


def test_tools_and_no_choice_is_auto_and_on_compressa_none() -> None:
    for dialect in (UNION, COMPACTIFAI):
        assert use(dialect, tools=TOOLS).mode == "auto"
    assert use(COMPRESSA, tools=TOOLS, has_format=False) == ToolUse()


@pytest.mark.parametrize("dialect", [UNION, COMPRESSA, COMPACTIFAI])
def test_none_does_not_offer_tools(dialect: Dialect) -> None:
    assert use(dialect, tools=TOOLS, tool_choice="none", has_format=False).offered is None


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_offered_tools_have_what_templates_read(choice: str) -> None:
    wanted = use(tools=TOOLS, tool_choice=choice)
    assert wanted.mode == choice
    assert wanted.forced == (choice == "required")
    assert [each.name for each in wanted.tools] == ["weather", "time"]
    assert [each.strict for each in wanted.tools] == [True, False]
    assert wanted.tools[1].parameters is None
    assert wanted.offered == [
        tool("weather", description="Tells it", parameters=SCHEMA),
        tool("time", parameters={"type": "object", "properties": {}}),
    ]


@pytest.mark.parametrize(
    ("dialect", "choice"),
    [
        *[(dialect, named("time")) for dialect in (UNION, COMPRESSA, COMPACTIFAI)],
        (UNION, {"function": {"name": "time"}}),
        (COMPACTIFAI, "time"),
    ],
)
def test_a_named_tool_is_the_only_one_to_call(dialect: Dialect, choice: Any) -> None:
    wanted = use(dialect, tools=TOOLS, tool_choice=choice, parallel_tool_calls=True)
    assert wanted.mode == "named"
    assert wanted.forced
    assert not wanted.parallel
    assert [each.name for each in wanted.tools] == ["time"]
    assert wanted.offered is not None
    assert len(wanted.offered) == 2


MUST_BE_SET = "When using `tool_choice`, `tools` must be set."
OTHER_STRING = '`tool_choice` must either be a named tool, "auto", or "none".'
MALFORMED = (
    "Incorrectly formatted `tool_choice`. Should be like "
    '`{"type": "function", "function": {"name": "my_function"}}`'
)
NO_MATCH = "The tool specified in `tool_choice` does not match any of the specified `tools`"
NAMED_ONLY = "Currently only named tools are supported."
NO_TOOLS: list[Any] = [None, []]


@pytest.mark.parametrize(
    ("dialect", "tools", "choice", "message"),
    [
        *[
            (UNION, tools, choice, MUST_BE_SET)
            for tools in NO_TOOLS
            for choice in ("auto", "required", named("time"))
        ],
        (COMPRESSA, None, named("time"), MUST_BE_SET),
        (COMPACTIFAI, None, "auto", MUST_BE_SET),
        (UNION, TOOLS, named("other"), NO_MATCH),
        (COMPRESSA, TOOLS, named("other"), NO_MATCH),
        *[
            (UNION, TOOLS, choice, MALFORMED)
            for choice in (
                {},
                {"type": "function"},
                {"type": "function", "name": "time"},
                {"type": "function", "function": "time"},
                {"type": "function", "function": {"name": 5}},
                {"type": "allowed_tools", "function": {"name": "time"}},
                ["auto"],
                7,
            )
        ],
        (UNION, TOOLS, "time", OTHER_STRING),
        (UNION, TOOLS, "any", OTHER_STRING),
        (UNION, None, "any", OTHER_STRING),
        (COMPACTIFAI, TOOLS, "other", OTHER_STRING),
        *[(COMPRESSA, TOOLS, choice, NAMED_ONLY) for choice in ("auto", "required", "time", "any")],
        (COMPRESSA, None, "auto", NAMED_ONLY),
    ],
)
def test_wrong_choices_are_refused_in_the_contract_s_words(
    dialect: Dialect, tools: Any, choice: Any, message: str
) -> None:
    refused = refusal(dialect, tools=tools, tool_choice=choice)
    assert refused.message == message
    assert refused.param == "tool_choice"


@pytest.mark.parametrize(
    ("dialect", "choice"), [(UNION, None), (UNION, "auto"), (UNION, "required"), (COMPRESSA, named("time"))]
)
def test_tools_of_a_model_that_has_no_form_for_them(dialect: Dialect, choice: Any) -> None:
    refused = refusal(dialect, has_format=False, tools=TOOLS, tool_choice=choice)
    assert refused.message == "The model `small` does not support tools."
    assert (refused.param, refused.code) == ("tools", "unsupported_parameter")


@pytest.mark.parametrize(("given", "parallel"), [(None, True), (True, True), (False, False)])
def test_parallel_calls_unless_told_otherwise(given: bool | None, parallel: bool) -> None:
    assert use(tools=TOOLS, parallel_tool_calls=given).parallel is parallel


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web_search"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([TOOLS[0], {"type": "function", "function": []}], "tools[1].function"),
        ([tool("")], "tools[0].function.name"),
        ([tool("a b")], "tools[0].function.name"),
        ([tool("a\n")], "tools[0].function.name"),
        ([tool("é")], "tools[0].function.name"),
        ([tool("a" * 65)], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": None}}], "tools[0].function.name"),
        ([tool("f", parameters=[])], "tools[0].function.parameters"),
        ([tool("f", parameters="{}")], "tools[0].function.parameters"),
        ([tool("f", parameters={"type": "string"})], "tools[0].function.parameters"),
        ([tool("f", description=1)], "tools[0].function.description"),
        ([tool("f", strict="yes")], "tools[0].function.strict"),
        ([tool("f"), tool("f")], "tools"),
        ([tool(f"f{each}") for each in range(MAX_TOOLS + 1)], "tools"),
        ([tool("f", description="x" * MAX_TOOLS_BYTES)], "tools"),
        ([tool("f", parameters=nested(60))], "tools"),
    ],
)
@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_malformed_tools_are_refused_whatever_the_choice(tools: Any, param: str, choice: Any) -> None:
    assert refusal(tools=tools, tool_choice=choice).param == param


def test_what_is_just_inside_the_bounds_is_taken() -> None:
    tools = [tool(f"f-._{each}") for each in range(MAX_TOOLS - 1)] + [
        tool("a" * 64, parameters={"type": ["object", "null"], **nested(40)}, description=None, strict=None)
    ]
    assert len(use(tools=tools).tools) == MAX_TOOLS


FUNCTIONS = [{"name": "weather", "parameters": SCHEMA}, {"name": "time"}]


def test_legacy_functions_mean_one_call() -> None:
    wanted = use(functions=FUNCTIONS)
    assert (wanted.mode, wanted.legacy, wanted.parallel) == ("auto", True, False)
    assert wanted.offered == use(tools=[tool("weather", parameters=SCHEMA), tool("time")]).offered
    wanted = use(functions=FUNCTIONS, function_call={"name": "time"})
    assert (wanted.mode, wanted.legacy, [each.name for each in wanted.tools]) == ("named", True, ["time"])
    assert use(functions=FUNCTIONS, function_call="auto").mode == "auto"
    assert use(functions=FUNCTIONS, function_call="none").mode == "none"
    assert use(function_call="none").mode == "none"
    assert use(COMPRESSA, functions=FUNCTIONS).mode == "none"


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        (
            {"function_call": "auto"},
            "When using `function_call`, `functions` must be set.",
            "function_call",
        ),
        (
            {"functions": FUNCTIONS, "function_call": "required"},
            '`function_call` must either be a named function, "auto", or "none".',
            "function_call",
        ),
        (
            {"functions": FUNCTIONS, "function_call": {"function": {"name": "time"}}},
            'Incorrectly formatted `function_call`. Should be like `{"name": "my_function"}`',
            "function_call",
        ),
        (
            {"functions": FUNCTIONS, "function_call": {"name": "other"}},
            "The function specified in `function_call` does not match any of the specified `functions`",
            "function_call",
        ),
        (
            {"functions": FUNCTIONS, "tools": TOOLS},
            "`functions` and `function_call` cannot be used together with `tools` and `tool_choice`.",
            "functions",
        ),
        ({"functions": [{"name": "!"}]}, None, "functions[0].name"),
    ],
)
def test_wrong_legacy_fields_are_refused(fields: dict[str, Any], message: str | None, param: str) -> None:
    refused = refusal(**fields)
    assert refused.param == param
    if message is not None:
        assert refused.message == message


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ARGUMENTS = '{"city": "Oslo", "list": [1, {"é": "\\u00e9"}]}'


def deltas(wanted: ToolUse, *pieces: str, finish_reason: str = "stop") -> tuple[list[dict[str, Any]], str]:
    turn = wanted.turn(HERMES)
    assert turn is not None
    shown = [delta for piece in pieces for delta in turn.push(piece)]
    last, reason = turn.end(finish_reason)
    return shown + last, reason


def accumulated(shown: list[dict[str, Any]], reason: str) -> Any:
    """Return the choice that the official client makes of the stream."""
    state: Any = ChatCompletionStreamState()
    choices = [
        ({"role": "assistant", "content": ""}, None),
        *[(delta, None) for delta in shown],
        ({}, reason),
    ]
    for delta, finish in choices:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "small",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return state.get_final_completion().choices[0]


def test_streamed_calls_say_id_and_name_once_and_add_up_in_the_official_client() -> None:
    text = "I look.\n" + call("weather", ARGUMENTS) + "\n" + call("time", "{}")
    shown, reason = deltas(use(tools=TOOLS), *text)

    calls = [each["tool_calls"][0] for each in shown if "tool_calls" in each]
    assert "".join(each.get("content", "") for each in shown) == "I look."
    heads = [each for each in calls if "id" in each]
    assert [each.keys() for each in heads] == [{"index", "id", "type", "function"}] * 2
    assert [each["function"] for each in heads] == [
        {"name": "weather", "arguments": ""},
        {"name": "time", "arguments": ""},
    ]
    assert len({each["id"] for each in heads}) == 2
    assert all(each["id"].startswith("chatcmpl-tool-") for each in heads)
    assert [each["index"] for each in calls] == sorted(each["index"] for each in calls)
    assert all(each.keys() == {"index", "function"} for each in calls if each not in heads)
    assert len(calls) > 20  # the arguments come as they are written

    choice = accumulated(shown, reason)
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    made = [(each.type, each.function.name, each.function.arguments) for each in choice.message.tool_calls]
    assert made == [("function", "weather", ARGUMENTS), ("function", "time", "{}")]


def test_a_legacy_call_adds_up_in_the_official_client() -> None:
    shown, reason = deltas(use(functions=FUNCTIONS), *call("weather", ARGUMENTS))
    assert shown[0] == {"function_call": {"name": "weather", "arguments": ""}}
    assert all(each["function_call"].keys() == {"arguments"} for each in shown[1:])
    choice = accumulated(shown, reason)
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "weather"
    assert choice.message.function_call.arguments == ARGUMENTS


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": TOOLS}, "tool_calls"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_calls"),
        ({"tools": TOOLS, "tool_choice": named("time")}, "stop"),
        ({"functions": FUNCTIONS}, "function_call"),
        ({"functions": FUNCTIONS, "function_call": {"name": "time"}}, "function_call"),
    ],
)
def test_why_an_answer_with_a_call_ended(fields: dict[str, Any], reason: str) -> None:
    wanted = use(**fields)
    assert deltas(wanted, call("time", "{}"))[1] == reason
    assert deltas(wanted, call("time", "{}")[:-5], finish_reason="length")[1] == "length"


def test_a_text_ends_as_it_ends() -> None:
    assert deltas(use(tools=TOOLS), "Hello", " there") == (
        [{"content": "Hello"}, {"content": " there"}],
        "stop",
    )
    assert deltas(use(tools=TOOLS), "Hello", finish_reason="length")[1] == "length"


def test_what_stands_beside_calls_that_say_nothing() -> None:
    forced = named("time")
    assert use(tools=TOOLS).silent_content(UNION) is None
    assert use(tools=TOOLS, tool_choice=forced).silent_content(UNION) is None
    assert use(tools=TOOLS, tool_choice=forced).silent_content(COMPRESSA) == ""


def test_a_grammar_where_a_call_must_be_or_must_be_strict() -> None:
    for format_ in (HERMES, LLAMA3_JSON):
        assert ToolUse().grammar(format_, lambda _: None) is None
        assert use(tools=TOOLS[1:]).grammar(format_, lambda _: None) is None
        for fields in ({}, {"tool_choice": "required"}, {"tool_choice": named("weather")}):
            grammar = use(tools=TOOLS, **fields).grammar(format_, lambda _: None)
            assert grammar is not None
            assert json.dumps(SCHEMA["properties"])[1:-2] in grammar
            assert ("time" in grammar) == (fields.get("tool_choice") != named("weather"))
