"""Tool calls are found in answers, wherever the pieces are cut, and their markup is not shown."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.generation.tools.events import Arguments, CallBegin, CallEnd, Content, ToolEvent
from appliance.engines.generation.tools.formats import HERMES, LLAMA3_JSON, ToolFormat, tool_format
from appliance.engines.generation.tools.syntax import MAX_CALLS, Tool

TOOLS = [Tool(name="weather"), Tool(name="time")]
FORMATS = [HERMES, LLAMA3_JSON]

# An answer as its reader sees it: texts, and calls as (name, arguments).
Parts = list[str | tuple[str, str]]


def parts(events: list[ToolEvent]) -> Parts:
    """Join events; they must come in order, and every call must begin and end once."""
    result: Parts = []
    opened: int | None = None
    count = 0
    for event in events:
        if isinstance(event, Content):
            assert opened is None
            assert event.text
            if result and isinstance(result[-1], str):
                result[-1] += event.text
            else:
                result.append(event.text)
        elif isinstance(event, CallBegin):
            assert opened is None
            assert event.index == count
            opened, count = event.index, count + 1
            result.append((event.name, ""))
        else:
            assert event.index == opened
            if isinstance(event, CallEnd):
                opened = None
            else:
                assert event.piece
                call = result[-1]
                assert isinstance(call, tuple)
                result[-1] = (call[0], call[1] + event.piece)
    assert opened is None
    return result


def parsed(
    format_: ToolFormat,
    *pieces: str,
    parallel: bool = True,
    forced: bool = False,
    cut: bool = False,
    tools: list[Tool] = TOOLS,
) -> Parts:
    parser = format_.parser(tools, parallel=parallel, forced=forced)
    events = [event for piece in pieces for event in parser.push(piece)]
    return parts([*events, *parser.flush(cut=cut)])


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def test_formats_by_their_manifest_names() -> None:
    assert tool_format("hermes") is HERMES
    assert tool_format("llama3-json") is LLAMA3_JSON
    assert tool_format("none") is None


ARGUMENTS = '{"city": "Oslo", "deep": {"list": [1, {"}": "]\\"}{"}], "é": "\\u00e9\\\\"}}'

HERMES_ANSWERS: dict[str, Parts] = {
    "Hello": ["Hello"],
    " \n ": [" \n "],
    "a < b <tool": ["a < b <tool"],
    "<<tool_call": ["<<tool_call"],
    hermes("weather", ARGUMENTS): [("weather", ARGUMENTS)],
    "\n" + hermes("weather", "{}") + "\n": [("weather", "{}")],
    "Let me look.\n\n" + hermes("time", "{}"): ["Let me look.", ("time", "{}")],
    hermes("weather", '{"a": 1}') + "\n" + hermes("time", "{}"): [("weather", '{"a": 1}'), ("time", "{}")],
    hermes("weather", "{}") + hermes("time", "{}"): [("weather", "{}"), ("time", "{}")],
    hermes("weather", "{}") + "\nDone.": [("weather", "{}"), "\nDone."],
    # Other spacing, other order, other members.
    '<tool_call>{"name":"time","arguments":{ "a" :\t1 }}</tool_call>': [("time", '{ "a" :\t1 }')],
    '<tool_call> {\n"arguments" : {"a": 1} ,\n"name" : "time" }\n</tool_call>': [("time", '{"a": 1}')],
    '<tool_call>{"type": "function", "name": "time", "parameters": {}}</tool_call>': [("time", "{}")],
    '<tool_call>{"name": "time", "arguments": {}, "id": [1, "x"], "name": "no"}</tool_call>': [
        ("time", "{}")
    ],
    '<tool_call>{"name": "tim\\u0065", "arguments": {}}</tool_call>': [("time", "{}")],
    # Arguments that are no object.
    '<tool_call>{"name": "time"}</tool_call>': [("time", "{}")],
    '<tool_call>{"name": "time", "arguments": null}</tool_call>': [("time", "{}")],
    '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>': [("time", '{"a": 1}')],
    '<tool_call>{"name": "time", "arguments": [1, 2]}</tool_call>': [("time", "[1, 2]")],
    '<tool_call>{"arguments": "now", "name": "time"}</tool_call>': [("time", '"now"')],
    # Not calls: kept word for word.
    hermes("unknown", "{}"): [hermes("unknown", "{}")],
    "The tag <tool_call> opens a call.": ["The tag <tool_call> opens a call."],
    " <tool_call> \n": [" <tool_call> \n"],
    '<tool_call>\n{"city": "Oslo"}\n</tool_call>': ['<tool_call>\n{"city": "Oslo"}\n</tool_call>'],
    '<tool_call>{"name": 5, "arguments": {}}': ['<tool_call>{"name": 5, "arguments": {}}'],
    '<tool_call>{"name": "\\q"}': ['<tool_call>{"name": "\\q"}'],
    "<tool_call>[]\n" + hermes("time", "{}"): ["<tool_call>[]", ("time", "{}")],
    "<tool_call><tool_call>\n" + hermes("time", "{}")[12:]: ["<tool_call>", ("time", "{}")],
    # Unfinished or broken behind the name.
    '<tool_call>\n{"name": "ti': ['<tool_call>\n{"name": "ti'],
    '<tool_call>\n{"name": "time"': [("time", "")],
    '<tool_call>\n{"arguments": {"a": 1}, "na': ['<tool_call>\n{"arguments": {"a": 1}, "na'],
    '<tool_call>\n{"name": "time", "arguments": {"a": [1, "x': [("time", '{"a": [1, "x')],
    '<tool_call>\n{"name": "time", "arguments": {"a": 1}': [("time", '{"a": 1}')],
    '<tool_call>\n{"name": "time", "arguments": {"a": 1}}': [("time", '{"a": 1}')],
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_': [("time", "{}")],
    '<tool_call>{"name": "time", "arguments": {"a": 1\n</tool_call>\nSo': [("time", '{"a": 1\n'), "\nSo"],
    '<tool_call>{"name": "time", "arguments": {"a": "x}}\n</tool_call>': [("time", '{"a": "x}}')],
    '<tool_call>{"name": "time", "arguments": {"a": "x\n</b>"}}\n</tool_call>': [
        ("time", '{"a": "x\n</b>"}')
    ],
    '<tool_call>{"name": "time", "arguments": {}]}}\n</tool_call>' + hermes("weather", "{}"): [
        ("time", "{}"),
        ("weather", "{}"),
    ],
    # Without a closing marker.
    '<tool_call>{"name": "time", "arguments": {}} Then': [("time", "{}"), " Then"],
    '<tool_call>{"name": "time", "arguments": {}}\n' + hermes("weather", "{}"): [
        ("time", "{}"),
        ("weather", "{}"),
    ],
    '<tool_call>{"name": "time", "arguments": {"a": "</tool_call>"}}</tool_call>': [
        ("time", '{"a": "</tool_call>"}')
    ],
}

LLAMA_ANSWERS: dict[str, Parts] = {
    "Hello": ["Hello"],
    "": [],
    llama("weather", ARGUMENTS): [("weather", ARGUMENTS)],
    "\n<|python_tag|> " + llama("weather", "{}") + " ": [("weather", "{}")],
    llama("weather", "{}") + "; " + llama("time", '{"a": 1}'): [("weather", "{}"), ("time", '{"a": 1}')],
    llama("weather", "{}") + "\n" + llama("time", "{}"): [("weather", "{}"), ("time", "{}")],
    '{"type": "function", "name": "time", "parameters": {"a": 1}}': [("time", '{"a": 1}')],
    '{"name": "time", "arguments": {"a": 1}}': [("time", '{"a": 1}')],
    '{"parameters": {"a": 1}, "name": "time"}': [("time", '{"a": 1}')],
    llama("time", '{"a": 1') + "]": [("time", '{"a": 1}')],
    # Not calls: kept word for word.
    "Then " + llama("time", "{}"): ["Then " + llama("time", "{}")],
    llama("unknown", "{}"): [llama("unknown", "{}")],
    '{"city": "Oslo"}': ['{"city": "Oslo"}'],
    '{"name": "time"}': ['{"name": "time"}'],
    '{"parameters": {"a": 1}}': ['{"parameters": {"a": 1}}'],
    "<|python_tag|>search.call(query)": ["<|python_tag|>search.call(query)"],
    llama("time", "{}") + "; done": [("time", "{}"), "; done"],
    '{"na': ['{"na'],
    '{"name": "time", "para': [("time", "")],
}

ANSWERS = [(HERMES, *each) for each in HERMES_ANSWERS.items()] + [
    (LLAMA3_JSON, *each) for each in LLAMA_ANSWERS.items()
]


@pytest.mark.parametrize(("format_", "text", "expected"), ANSWERS)
def test_answers_of_every_kind(format_: ToolFormat, text: str, expected: Parts) -> None:
    assert parsed(format_, text) == expected
    assert parsed(format_, *text) == expected


@given(data=st.data(), answer=st.sampled_from(ANSWERS), cut=st.booleans(), forced=st.booleans())
def test_any_split_gives_the_same(
    data: st.DataObject, answer: tuple[ToolFormat, str, Parts], cut: bool, forced: bool
) -> None:
    format_, text, _ = answer
    text = text[: data.draw(st.integers(0, len(text)))]
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    for parallel in (True, False):
        options: Any = {"parallel": parallel, "cut": cut, "forced": forced}
        assert parsed(format_, *pieces, **options) == parsed(format_, text, **options)


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "<tool_call>",
                    "</tool_call>",
                    "<",
                    "\n",
                    " ",
                    "{",
                    "}",
                    '"',
                    "\\",
                    ",",
                    ":",
                    ";",
                    "[",
                    "]",
                ),
                *('{"name": "time", "arguments": ', '{"name": "no", "parameters": {}}', "<|python_tag|>"),
                hermes("time", '{"a": "b"}'),
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=12,
).map("".join)


@given(format_=st.sampled_from(FORMATS), text=FRAGMENTS, parallel=st.booleans(), forced=st.booleans())
def test_hostile_text_is_parsed_the_same_in_any_split(
    format_: ToolFormat, text: str, parallel: bool, forced: bool
) -> None:
    whole = parsed(format_, text, parallel=parallel, forced=forced)
    assert parsed(format_, *text, parallel=parallel, forced=forced) == whole
    calls = [part for part in whole if not isinstance(part, str)]
    assert parallel or len(calls) <= 1
    assert {name for name, _ in calls} <= {"weather", "time"}
    if not calls and not forced:
        assert whole == ([text] if text else [])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["weather", "time"]), st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3)
    ),
    min_size=1,
    max_size=3,
)


@given(calls=CALLS, text=st.text("ab .é\n", max_size=9), ascii_=st.booleans(), indent=st.none() | st.just(1))
def test_what_a_model_writes_comes_back(
    calls: list[tuple[str, dict[str, Any]]], text: str, ascii_: bool, indent: int | None
) -> None:
    expected: Parts = [(name, json.dumps(args, ensure_ascii=ascii_, indent=indent)) for name, args in calls]
    written = [hermes(*call) for call in expected if not isinstance(call, str)]
    shown: Parts = [text.rstrip("\n ")] if text.strip() else []
    assert parsed(HERMES, *(text + "\n".join(written))) == shown + expected
    assert parsed(HERMES, "\n".join(written), forced=True) == expected
    written = [llama(*call) for call in expected if not isinstance(call, str)]
    assert parsed(LLAMA3_JSON, *"; ".join(written)) == expected
    assert parsed(LLAMA3_JSON, "; ".join(written), forced=True) == expected
    assert parsed(LLAMA3_JSON, "; ".join(written), parallel=False) == expected[:1]


def test_only_what_may_be_markup_is_withheld() -> None:
    parser = HERMES.parser(TOOLS, parallel=True, forced=False)
    assert parser.push("Hi <b") == [Content("Hi <b")]
    assert parser.push(" ") == []
    assert parser.push("x <tool") == [Content(" x")]
    assert parser.push("s>") == [Content(" <tools>")]
    assert parser.push('<tool_call>{"name": "time", "argum') == []
    assert parser.push('ents": {"a": "b') == [CallBegin(0, "time"), Arguments(0, '{"a": "b')]
    assert parser.push('c"') == [Arguments(0, 'c"')]
    assert parser.push("}}") == [Arguments(0, "}"), CallEnd(0)]
    assert parser.push("</tool_call>") == []
    assert parser.flush() == []

    parser = LLAMA3_JSON.parser(TOOLS, parallel=True, forced=False)
    assert parser.push('{"') == []
    assert parser.push('city":') == [Content('{"city":')]
    assert parser.push(" {") == [Content(" {")]


def test_one_call_only_when_calls_may_not_be_parallel() -> None:
    parser = HERMES.parser(TOOLS, parallel=False, forced=False)
    events = parser.push("Well. " + hermes("time", "{}"))
    assert parser.finished
    assert parser.push("\n" + hermes("weather", "{}") + " Bye.") == []
    assert parts([*events, *parser.flush()]) == ["Well.", ("time", "{}")]


def test_calls_are_bounded() -> None:
    assert parsed(HERMES, hermes("time", "{}") * (MAX_CALLS + 3)) == [("time", "{}")] * MAX_CALLS


@pytest.mark.parametrize(("format_", "write"), [(HERMES, hermes), (LLAMA3_JSON, llama)])
@pytest.mark.parametrize("cut", [False, True])
def test_a_forced_call_that_is_cut_anywhere_shows_no_markup(
    format_: ToolFormat, write: Any, cut: bool
) -> None:
    arguments = '{"city": "Oslo", "n": [1]}'
    text = write("weather", arguments)
    for end in range(len(text) + 1):
        found = parsed(format_, text[:end], forced=True, cut=cut, tools=TOOLS[:1], parallel=False)
        assert len(found) == 1
        assert isinstance(found[0], tuple)
        assert found[0][0] == "weather"
        assert arguments.startswith(found[0][1])
        several = parsed(format_, text[:end], forced=True, cut=cut)
        assert several in ([], found)


@pytest.mark.parametrize("start", ["", "Let me see.\n", hermes("time", "{}") + "\n"])
def test_a_call_that_the_length_limit_cuts_shows_no_markup(start: str) -> None:
    text = start + hermes("weather", '{"city": "Oslo"}')
    for end in range(len(start) + 2, len(text) + 1):
        shown = [part for part in parsed(HERMES, text[:end], cut=True) if isinstance(part, str)]
        assert shown == (["Let me see."] if start.startswith("Let") else [])


def test_markers_that_the_detokenizer_left_out_are_not_missed_in_forced_answers() -> None:
    text = '\n{"name": "time", "arguments": {}}\n\n\n{"name": "weather", "arguments": {"a": 1}}\n'
    assert parsed(HERMES, text, forced=True) == [("time", "{}"), ("weather", '{"a": 1}')]


def test_a_long_answer_stays_cheap() -> None:
    nested = '<tool_call>{"arguments": {"a": "' + "<tool_call>{" * 20_000
    spaces = "a" + " " * 100_000 + "<tool_call>" + " " * 100_000
    started = time.monotonic()
    for text in (nested, spaces, "{" * 100_000, "<tool_call>" * 20_000):
        assert parsed(HERMES, *text) == [text]
        assert parsed(LLAMA3_JSON, *text) == [text]
    assert time.monotonic() - started < 20
