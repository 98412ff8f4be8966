"""Under the grammar of a tool format every answer is calls, with arguments that their schemas accept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.compiler import ConstraintCompiler, LarkGrammar, MatcherState
from appliance.engines.generation.tools.formats import HERMES, LLAMA3_JSON, ToolFormat
from appliance.engines.generation.tools.syntax import MAX_CALLS, Tool
from tests.engines.generation.tools.test_formats import Parts, hermes, llama, parsed

WEATHER = Tool(
    name="get_weather",
    strict=True,
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"enum": ["C", "F"]},
            "days": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 9},
                "maxItems": 3,
            },
            "place": {"$ref": "#/$defs/point"},
        },
        "required": ["city", "unit"],
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                "required": ["lat", "lon"],
            }
        },
    },
)
NO_PARAMETERS = Tool(name="now")
NONE_NAMED = Tool(name="get", parameters={"type": "object", "properties": {}})
ANYTHING = Tool(name="get_weather.v2", parameters={})
CHOICE = Tool(
    name="either",
    parameters={
        "anyOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]
    },
)
TOOLS = [WEATHER, NO_PARAMETERS, NONE_NAMED, ANYTHING, CHOICE]
BY_NAME = {tool.name: tool for tool in TOOLS}


Written = tuple[ToolFormat, Callable[[str, str], str]]


class Vocabulary:
    """The chat model's tokens, and among them the markers: as text, added, or added and special."""

    def __init__(self, tokenizer_json: str, markers: str, directory: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        both = [
            marker for each in (HERMES, LLAMA3_JSON) for marker in (each.syntax.opening, each.syntax.closing)
        ]
        if markers != "text":
            add = self.tokenizer.add_special_tokens if markers == "special" else self.tokenizer.add_tokens
            add([tokenizers.AddedToken(marker, normalized=False) for marker in both if marker])
        self.added = {
            token.content: token_id for token_id, token in self.tokenizer.get_added_tokens_decoder().items()
        }
        self.end = self.added["<|im_end|>"]
        self.size = self.tokenizer.get_vocab_size()
        self.closing = np.array(
            [bool(set(self.tokenizer.id_to_token(each) or "") & set('"}]')) for each in range(self.size)]
        )
        self.tokenizer.save(str(directory / "tokenizer.json"))
        self.compiler = ConstraintCompiler(directory / "tokenizer.json", [self.end], self.size)

    def special(self, text: str) -> int | None:
        return self.added.get(text)

    def start(self, lark: str) -> MatcherState:
        return self.compiler.compile(LarkGrammar(lark)).start()

    def allowed(self, state: MatcherState) -> NDArray[np.bool_]:
        """Which tokens may come next."""
        logits = np.zeros(self.size, np.float32)
        state.mask(logits)
        return np.equal(logits, 0)

    def accepts(self, lark: str, text: str) -> bool:
        """Whether ``text`` is a whole answer under the grammar."""
        state = self.start(lark)
        for token in [*self.tokenizer.encode(text, add_special_tokens=False).ids, self.end]:
            if not self.allowed(state)[token]:
                return False
            if token != self.end:
                state.accept(token)
        return True

    def walk(self, lark: str, seed: int, longest: int = 200) -> str | None:
        """Return an answer of random tokens that the grammar allows; None when it became too long."""
        choose = np.random.default_rng(seed)
        state = self.start(lark)
        ids: list[int] = []
        while len(ids) < longest:
            allowed = self.allowed(state)
            may_end, allowed[self.end] = allowed[self.end], False
            if may_end and (choose.random() < 0.4 or not allowed.any()):
                return str(self.tokenizer.decode(ids, skip_special_tokens=False))
            closing = allowed & self.closing
            candidates = np.flatnonzero(closing if closing.any() and choose.random() < 0.7 else allowed)
            ids.append(int(choose.choice(candidates)))
            state.accept(ids[-1])
        return None


@pytest.fixture(scope="module")
def tokenizer_json(pack: Path) -> str:
    return (pack / "tokenizer.json").read_text("utf-8")


@pytest.fixture(scope="module", params=["text", "added", "special"])
def vocabulary(
    request: pytest.FixtureRequest, tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory
) -> Vocabulary:
    return Vocabulary(tokenizer_json, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=[HERMES, LLAMA3_JSON], ids=["hermes", "llama3-json"])
def written(request: pytest.FixtureRequest) -> Written:
    """A format, and how a call is written in it."""
    return request.param, hermes if request.param is HERMES else llama


def check_calls(calls: Parts) -> None:
    for call in calls:
        assert not isinstance(call, str)
        name, arguments = call
        tool = BY_NAME[name]
        value = json.loads(arguments)
        assert isinstance(value, dict)
        jsonschema.validate(value, tool.parameters or {}, jsonschema.Draft202012Validator)
        if tool in (NO_PARAMETERS, NONE_NAMED):
            assert arguments == "{}"
        if tool is WEATHER:
            assert value.keys() <= {"city", "unit", "days", "place"}


@pytest.mark.parametrize("parallel", [False, True])
def test_every_forced_answer_is_valid_calls(vocabulary: Vocabulary, written: Written, parallel: bool) -> None:
    format_, _ = written
    lark = format_.grammar(TOOLS, parallel=parallel, special=vocabulary.special)
    names, finished = set(), 0
    for seed in range(60):
        text = vocabulary.walk(lark, seed)
        if text is None:
            continue
        finished += 1
        for forced in (True, False):
            calls = parsed(format_, text, parallel=parallel, forced=forced, tools=TOOLS)
            assert 1 <= len(calls) <= (MAX_CALLS if parallel else 1)
            check_calls(calls)
            names |= {call[0] for call in calls}
    assert finished >= 40
    assert len(names) >= 3


def test_forced_answers_as_models_write_them(vocabulary: Vocabulary, written: Written) -> None:
    format_, write = written
    sunny = write("get_weather", '{"city": "Oslo", "unit": "C", "days": [1, 2]}')
    now = write("now", "{}")
    several = sunny + format_.syntax.separator + now

    one = format_.grammar(TOOLS, parallel=False, special=vocabulary.special)
    more = format_.grammar(TOOLS, parallel=True, special=vocabulary.special)
    for lark in (one, more):
        assert vocabulary.accepts(lark, sunny)
        assert vocabulary.accepts(lark, now)
        assert vocabulary.accepts(lark, write("get_weather.v2", '{"any": [{"thing": null}]}'))
        for wrong in (
            "Hello",
            "",
            sunny[:-1],
            "Yes. " + sunny,
            sunny + " Done.",
            write("unknown", "{}"),
            write("now", '{"a": 1}'),
            write("get_weather", '{"city": "Oslo"}'),
            write("get_weather", '{"city": "Oslo", "unit": "C", "more": 1}'),
            write("get_weather.v2", "[1]"),
        ):
            assert not vocabulary.accepts(lark, wrong), wrong
    assert vocabulary.accepts(more, several)
    assert not vocabulary.accepts(one, several)
    assert vocabulary.accepts(more, format_.syntax.separator.join([now] * MAX_CALLS))
    assert not vocabulary.accepts(more, format_.syntax.separator.join([now] * (MAX_CALLS + 1)))


def test_a_marker_token_is_the_only_way_to_write_it(tokenizer_json: str, tmp_path: Path) -> None:
    added = Vocabulary(tokenizer_json, "added", tmp_path)
    lark = HERMES.grammar([NO_PARAMETERS], parallel=False, special=added.special)
    (first,) = np.flatnonzero(added.allowed(added.start(lark)))
    assert first == added.special("<tool_call>")
    assert added.accepts(lark, hermes("now", "{}"))


@pytest.mark.parametrize("name", ['a"b', "a\\n\n", "é😀", "%json {", "</tool_call>", "call_0", "\x00'$"])
def test_names_of_any_characters_are_written_as_json(
    vocabulary: Vocabulary, written: Written, name: str
) -> None:
    format_, write = written
    tools = [Tool(name=name), Tool(name="other")]
    lark = format_.grammar(tools, parallel=False, special=vocabulary.special)
    text = write(json.dumps(name)[1:-1], "{}")
    if "<" not in name:  # as a token of its own the marker cannot be part of a name
        assert vocabulary.accepts(lark, text)
    assert parsed(format_, text, tools=tools) == [(name, "{}")]


def test_what_the_caller_says_to_the_grammar_s_compiler_is_not_heard() -> None:
    hostile = Tool(name="f", parameters={"properties": {"a": {}}, "x-guidance": {"lenient": True}})
    for format_ in (HERMES, LLAMA3_JSON):
        assert "lenient" not in format_.grammar([hostile], parallel=False, special=lambda _: None)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [], "required": [[]], "items": 5},
        {"properties": {"a": 5}},
        {"properties": {"a": {"pattern": "("}}},
        {"not": {"required": ["a"]}},
        {"properties": {"a": {"x-guidance": {}}}},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(
    vocabulary: Vocabulary, written: Written, schema: dict[str, Any]
) -> None:
    lark = written[0].grammar([Tool(name="f", parameters=schema)], parallel=False, special=vocabulary.special)
    with pytest.raises(InputRefusedError):
        vocabulary.start(lark)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (None, ["{}"], ["{ }", '{"a": 1}']),
        ({"type": "object", "properties": {}}, ["{}"], ["{ }", '{"a": 1}']),
        ({"properties": {}, "additionalProperties": False}, ["{}"], ['{"a": 1}']),
        ({"properties": {}, "additionalProperties": True}, ["{}", '{"a": 1}'], ["[]"]),
        ({}, ["{}", '{"a": [1, null]}'], ["[]", "null", '"a"']),
        ({"type": ["object", "null"]}, ["{}", '{"a": 1}'], ["null"]),
        (
            {"properties": {"a": {"type": "integer"}}},
            ["{}", '{"a":1}', '{ "a" : 1 }'],
            ['{"b": 1}', '{"a":  1}'],
        ),
    ],
)
def test_arguments_are_an_object_of_the_tool_s_own_parameters(
    vocabulary: Vocabulary,
    written: Written,
    schema: dict[str, Any] | None,
    right: list[str],
    wrong: list[str],
) -> None:
    format_, write = written
    lark = format_.grammar([Tool(name="f", parameters=schema)], parallel=False, special=vocabulary.special)
    for arguments in right:
        assert vocabulary.accepts(lark, write("f", arguments)), arguments
    for arguments in wrong:
        assert not vocabulary.accepts(lark, write("f", arguments)), arguments


def test_a_free_answer_may_be_text_or_calls_of_strict_tools(vocabulary: Vocabulary, written: Written) -> None:
    format_, write = written
    tools = [WEATHER, CHOICE]
    sunny = write("get_weather", '{"city": "Oslo", "unit": "C"}')
    # CHOICE is not strict: any object.
    choice = write("either", '{"c": 5}')
    one = format_.free_grammar(tools, parallel=False, special=vocabulary.special)
    more = format_.free_grammar(tools, parallel=True, special=vocabulary.special)
    assert one is not None
    assert more is not None
    for lark in (one, more):
        for right in (
            "",
            "Hello\nworld é",
            "a < b <tool",
            '{"city": 1}',
            '{"name": "x", "a": 1}',
            sunny,
            choice,
        ):
            assert vocabulary.accepts(lark, right), right
        for wrong in (
            sunny[:-1],
            write("get_weather", '{"city": "Oslo"}'),
            write("get_weather", "{}"),
            write("either", "[]"),
        ):
            assert not vocabulary.accepts(lark, wrong), wrong
    several = sunny + format_.syntax.separator + choice
    assert vocabulary.accepts(more, several)
    assert not vocabulary.accepts(one, several)


def test_a_free_hermes_answer_may_call_behind_a_text(vocabulary: Vocabulary) -> None:
    lark = HERMES.free_grammar(TOOLS, parallel=True, special=vocabulary.special)
    assert lark is not None
    sunny = hermes("get_weather", '{"city": "Oslo", "unit": "C"}')
    assert vocabulary.accepts(lark, f"Let me look.\n{sunny}\nAnd the other:\n{sunny}\nDone.")
    assert not vocabulary.accepts(lark, "Let me look.\n" + hermes("unknown", "{}"))


def test_without_strict_tools_a_free_answer_is_free() -> None:
    for format_ in (HERMES, LLAMA3_JSON):
        assert format_.free_grammar([ANYTHING, CHOICE], parallel=True, special=lambda _: None) is None


def free_walks(vocabulary: Vocabulary, format_: ToolFormat) -> Iterator[Parts]:
    lark = format_.free_grammar([WEATHER], parallel=True, special=vocabulary.special)
    assert lark is not None
    for seed in range(15):
        text = vocabulary.walk(lark, seed)
        if text is not None:
            yield parsed(format_, text, tools=TOOLS)


def test_calls_in_random_free_answers_are_valid(vocabulary: Vocabulary, written: Written) -> None:
    answers = list(free_walks(vocabulary, written[0]))
    assert len(answers) >= 5
    for answer in answers:
        check_calls([part for part in answer if not isinstance(part, str)])
