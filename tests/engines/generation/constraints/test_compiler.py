"""Whatever is drawn under a constraint fulfils it; what cannot be enforced is refused in bounded time."""

from __future__ import annotations

import json
import random
import re
import time
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.constraints.compiler import (
    Choice,
    ConstraintCompiler,
    ConstraintSpec,
    Grammar,
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
)
from appliance.engines.generation.contract import Constraint
from appliance.engines.generation.text.tokenizer import Tokenizer
from appliance.packs.manifest import Decoder
from tests.engines.generation.constraints.samples import Walker, document, random_pattern, wild_document

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
BATCHES = 10
PER_BATCH = 20
# Processor seconds; the wall clock of a busy machine tells nothing.
MOST_SECONDS = 2.0
MOST_STEP_SECONDS = 0.1

FIELDS: dict[str, Any] = {
    f"field_{place}": (
        {"type": "string", "maxLength": 20},
        {"type": "integer", "minimum": 0, "maximum": 1000},
        {"enum": ["red", "green", "blue"]},
        {"type": "array", "items": {"type": "number"}, "maxItems": 5},
    )[place % 4]
    for place in range(20)
}
TWENTY_FIELDS = {"type": "object", "properties": FIELDS, "required": list(FIELDS)}
PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
}


@pytest.fixture(scope="module")
def compiler(pack: Path, decoder: Decoder) -> ConstraintCompiler:
    compiler = ConstraintCompiler(pack / decoder.tokenizer, decoder.eos_token_ids, decoder.vocab_size)
    compiler.warm()
    return compiler


@pytest.fixture(scope="module")
def walker(pack: Path, decoder: Decoder) -> Walker:
    tokenizer = tokenizers.Tokenizer.from_file(str(pack / decoder.tokenizer))
    return Walker(tokenizer, list(decoder.eos_token_ids))


def accepts(constraint: Constraint, walker: Walker, text: str) -> bool:
    """Whether ``text`` may be the whole answer."""
    state = constraint.start()
    for token_id in [*walker.tokenizer.encode(text, add_special_tokens=False).ids, walker.ends[0]]:
        logits = np.zeros(walker.vocab_size, np.float32)
        state.mask(logits)
        if logits[token_id] != 0:
            return False
        state.accept(token_id)
    return True


def faults(schema: Any, text: str) -> list[str]:
    """What a validator says against ``text``."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    return [error.message for error in validator.iter_errors(json.loads(text))]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_texts_under_random_schemas_are_valid(
    compiler: ConstraintCompiler, walker: Walker, batch: int
) -> None:
    ended = 0
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        schema = document(random.Random(seed))
        constraint = compiler.compile(JsonSchema(schema))
        text = walker.text(constraint, seed, free_steps=10 * (seed % 4))
        if text is not None:
            ended += 1
            assert faults(schema, text) == [], (schema, text)
    assert ended >= PER_BATCH - 2


@pytest.mark.parametrize("batch", range(BATCHES))
def test_texts_under_random_expressions_match(
    compiler: ConstraintCompiler, walker: Walker, batch: int
) -> None:
    ended = 0
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        pattern = random_pattern(random.Random(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # [a&&b] may one day mean something else
            expression = re.compile(pattern)
        text = walker.text(compiler.compile(Regex(pattern)), seed, free_steps=10 * (seed % 4))
        if text is not None:
            ended += 1
            assert expression.fullmatch(text), (pattern, text)
    assert ended >= PER_BATCH - 4


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_keywords_thrown_together_are_refused_or_obeyed(
    compiler: ConstraintCompiler, walker: Walker, seed: int
) -> None:
    schema = wild_document(random.Random(seed))
    try:
        constraint = compiler.compile(JsonSchema(schema))
    except InputRefusedError:
        return
    text = walker.text(constraint, seed, free_steps=seed % 30)
    assert text is None or faults(schema, text) == [], (schema, text)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pattern=st.text(alphabet="ab01^$|()[]{}*+?.,-\\dwsDWSbBxuU:=<>!&~é\n", max_size=20))
def test_any_text_for_an_expression_is_refused_or_obeyed(
    compiler: ConstraintCompiler, walker: Walker, pattern: str
) -> None:
    try:
        text = walker.text(compiler.compile(Regex(pattern)), 0, free_steps=5)
    except InputRefusedError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            expression = re.compile(pattern)
        except re.error:
            return  # of ECMAScript alone
    assert text is None or expression.fullmatch(text), (pattern, text)


def nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"anyOf": [{"type": "null"}, {"type": "array", "items": schema}]}
    return schema


def chained(count: int, link: Any) -> Any:
    """Definitions of which each refers to the next, as ``link`` of its pointer says."""
    definitions = {f"d{place}": link(f"#/$defs/d{place + 1}") for place in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "object"}}}


def any_of_keys(count: int, key: str) -> Any:
    return {
        "anyOf": [
            {"type": "object", "properties": {key: {"const": place}}, "required": [key]}
            for place in range(count)
        ]
    }


HOSTILE: dict[str, ConstraintSpec] = {
    "too many repeats": Regex("a{1,100000}"),
    "many repeats": Regex("(a|b){1,65535}"),
    "nested repeats": Regex("((a{1,1000}){1,1000}){1,1000}"),
    "overlapping repeats": Regex("(.{1,100}a){50}"),
    "repeats of anything": Regex("(.{0,1000}){0,1000}x"),
    "optional repeats": Regex("(a?){500}a{500}"),
    "catastrophic alternation": Regex("(a|aa|a*)+b"),
    "look-behind automaton": Regex("(.*[aeiou].{50}){5}"),
    "large classes": Regex(r"(\p{L}\p{M}*[^\w\s]\W\S){1,1000}"),
    "a large set": Regex("[" + "".join(chr(0x4E00 + 2 * place) for place in range(8000)) + "]+"),
    "deep groups": Regex("(" * 4000 + ")" * 4000),
    "a long choice": Choice(tuple(f"value{place}" for place in range(100_000))),
    "a wide choice": Choice(tuple(f"v{place}" for place in range(9_000))),
    "a long option": Choice(("é" * 65_536,)),
    "long strings": JsonSchema({"type": "string", "minLength": 10**9}),
    "pattern and length": JsonSchema(
        {"type": "string", "pattern": "^(a|b)*a(a|b){20}$", "minLength": 50, "maxLength": 100}
    ),
    "deep schema": JsonSchema(nested(30)),
    "too deep schema": JsonSchema(nested(400)),
    "a huge enum": JsonSchema({"enum": [f"value{place}" for place in range(100_000)]}),
    "an enum of objects": JsonSchema({"enum": [{"a": place, "b": [place]} for place in range(3000)]}),
    "optional properties": JsonSchema(
        {"type": "object", "properties": {f"p{place}": {"type": ["string", "null"]} for place in range(1000)}}
    ),
    "required properties": JsonSchema(
        {
            "type": "object",
            "properties": {f"p{place}": {"type": "number", "minimum": place} for place in range(1000)},
            "required": [f"p{place}" for place in range(1000)],
        }
    ),
    "patterns": JsonSchema(
        {
            "type": "object",
            "properties": {f"p{place}": {"pattern": f"^(a.{{20}}b{place}|c)+$"} for place in range(900)},
        }
    ),
    "pattern properties": JsonSchema(
        {
            "type": "object",
            "patternProperties": {f"^(a|b)*{key}(a|b){{9}}$": {"type": "string"} for key in "cdefghijklmn"},
        }
    ),
    "long arrays": JsonSchema({"type": "array", "minItems": 1_000_000}),
    "combined options": JsonSchema({"allOf": [any_of_keys(4, f"a{place}") for place in range(10)]}),
    "combined options of many": JsonSchema({**any_of_keys(60, "a"), "allOf": [any_of_keys(60, "b")]}),
    "references, doubled": JsonSchema(
        chained(40, lambda pointer: {"type": "array", "prefixItems": [{"$ref": pointer}] * 2})
    ),
    "references in allOf, doubled": JsonSchema(
        chained(40, lambda pointer: {"allOf": [{"$ref": pointer}] * 2})
    ),
    "references with siblings, doubled": JsonSchema(
        chained(40, lambda pointer: {"prefixItems": [{"$ref": pointer, "minItems": 1}] * 2})
    ),
    "references in oneOf, doubled": JsonSchema(
        chained(40, lambda pointer: {"oneOf": [{"$ref": pointer}] * 2})
    ),
    "a long chain of references": JsonSchema(chained(290, lambda pointer: {"items": {"$ref": pointer}})),
    "too long a chain of references": JsonSchema(chained(900, lambda pointer: {"items": {"$ref": pointer}})),
    "divisors": JsonSchema(
        {
            "type": "array",
            "prefixItems": [{"type": "integer", "multipleOf": 9000 + place} for place in range(100)],
        }
    ),
    "a large divisor": JsonSchema({"type": "integer", "multipleOf": 9973}),
    "huge bounds": JsonSchema({"type": "integer", "maximum": 10**4000}),
    "long whitespace": JsonSchema({"type": "object"}, "[ \\n]{0,60000}"),
    "ambiguous grammar": Grammar('start: s\ns: s s | "a" | '),
    "grammar of repeats": Grammar('start: ("a"{1,100000}){1,100000}'),
    "a wide rule": Grammar("start: " + " | ".join(f'"{place}x"' for place in range(6000))),
    "a long chain of rules": Grammar(
        "start: r0\n"
        + "".join(f'r{place}: {"(" * 14}"x" r{place + 1}{")" * 14}\n' for place in range(990))
        + 'r990: "a"'
    ),
    "rules, doubled": Grammar(
        "start: r0\n"
        + "".join(f"r{place}: r{place + 1} r{place + 1}\n" for place in range(990))
        + 'r990: "a"'
    ),
    "terminals, doubled": Grammar(
        "start: T0\n"
        + "".join(f"T{place}: T{place + 1} T{place + 1}\n" for place in range(990))
        + 'T990: "a"'
    ),
    "too many rules": Grammar("start: r0\n" + "".join(f"r{place}: r{place + 1}\n" for place in range(5000))),
    "negated terminals": Grammar("start: A\nA: ~(~(/.*a.{30}/ & ~/b.*c.{20}/) & ~/(x|y)*z.{40}/)"),
    "deep brackets": Grammar("start: " + "(" * 3000 + '"a"' + ")" * 3000),
    "deep GBNF": Grammar("root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "GBNF rules": Grammar(
        "root ::= r0\n" + "".join(f'r{place} ::= r{place + 1} "a"\n' for place in range(290)) + 'r290 ::= "x"'
    ),
}


@pytest.mark.parametrize("spec", HOSTILE.values(), ids=HOSTILE)
def test_hostile_constraints_cost_little(
    compiler: ConstraintCompiler, walker: Walker, spec: ConstraintSpec
) -> None:
    started = time.process_time()
    try:
        constraint = compiler.compile(spec)
    except InputRefusedError:
        return
    finally:
        assert time.process_time() - started < MOST_SECONDS
    state = constraint.start()
    random_ids = np.random.default_rng(0)
    logits = np.empty(walker.vocab_size, np.float32)
    for _ in range(100):
        logits.fill(0)
        started = time.thread_time()
        try:
            state.mask(logits)
            if state.finished:
                return
            state.accept(int(random_ids.choice(np.flatnonzero(logits == 0))))
        except InputRefusedError:
            return
        finally:
            assert time.thread_time() - started < MOST_STEP_SECONDS


@pytest.mark.parametrize(
    "spec",
    [
        JsonSchema(False),
        JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}),
        JsonSchema({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}),
        JsonSchema({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}),
        JsonSchema({"type": "number", "minimum": 1, "exclusiveMaximum": 1}),
        JsonSchema({"enum": []}),
        JsonSchema({"enum": ["a"], "type": "integer"}),
        JsonSchema({"const": "abc", "maxLength": 2}),
        JsonSchema({"type": "string", "minLength": 3, "maxLength": 2}),
        JsonSchema({"type": "string", "pattern": "^a{3}$", "maxLength": 2}),
        JsonSchema({"type": "string", "format": "date", "pattern": "x"}),
        JsonSchema({"type": "array", "minItems": 2, "maxItems": 1}),
        JsonSchema({"type": "array", "prefixItems": [{}], "items": False, "minItems": 2}),
        JsonSchema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        JsonSchema({"type": "object", "required": ["a"], "additionalProperties": False}),
        JsonSchema({"type": "object", "required": ["a", "b"], "maxProperties": 1}),
        JsonSchema({"allOf": [{"type": "integer"}, {"type": "string"}]}),
        JsonSchema({"allOf": [{"minimum": 5}, {"maximum": 3}], "type": "number"}),
        JsonSchema(
            {
                "allOf": [
                    {"type": "integer", "multipleOf": 4},
                    {"multipleOf": 6},
                    {"minimum": 1, "maximum": 11},
                ]
            }
        ),
        JsonSchema({"anyOf": [{"type": "integer"}], "type": "string"}),
        JsonSchema({"oneOf": [{"const": 1}, {"const": 1.0}]}),
        JsonSchema({"$ref": "#"}),
        JsonSchema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        Regex(r"[^\s\S]"),
        Grammar('start: start "a"'),
        Grammar('start: "a" rest\nrest: "b" rest'),
        Grammar('start: "a" B\nB: /x/ & /y/'),
    ],
    ids=repr,
)
def test_what_nothing_satisfies_is_refused(compiler: ConstraintCompiler, spec: ConstraintSpec) -> None:
    with pytest.raises(InputRefusedError, match="cannot be satisfied") as caught:
        compiler.compile(spec)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "colour"}, "`type` must be one of"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a: `not` is not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"if": {}, "then": {"type": "integer"}}, "`if`"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "format": "iri"}, "`format` is not supported; these are: date"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": r"\bword\b"}, "word boundaries"),
        ({"type": "string", "pattern": r"(a)\1"}, "back references"),
        ({"type": "string", "pattern": "("}, "not closed"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
        ({"type": "number", "multipleOf": 0}, "above 0"),
        ({"const": "\x01"}, "control characters"),
        ({"const": 2**60}, "Listed numbers"),
        ({"$ref": "https://example.com/schema"}, "may only point into the schema itself"),
        ({"$ref": "file:///etc/passwd"}, "may only point into the schema itself"),
        ({"$ref": "#/$defs/nothing"}, "there is nothing"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"items": {"x-guidance": {}}}, "x-guidance"),
        ({"properties": {"a": 5}}, "#/properties/a: A schema must be an object or a boolean"),
        ({"required": "a"}, "`required` must be"),
        ({"minLength": -1}, "`minLength` must be"),
        ({"minimum": "1"}, "`minimum` must be a number"),
        ({"anyOf": []}, "non-empty array"),
        (5, "A schema must be an object or a boolean"),
    ],
    ids=str,
)
def test_what_is_wrong_or_not_supported_is_told(
    compiler: ConstraintCompiler, schema: Any, words: str
) -> None:
    with pytest.raises(InputRefusedError, match=re.escape(words)):
        compiler.compile(JsonSchema(schema))


def test_keys_and_bounds_hold_in_every_spelling(compiler: ConstraintCompiler, walker: Walker) -> None:
    constraint = compiler.compile(
        JsonSchema({"properties": {"a": {"type": "integer"}}, "type": "object", "additionalProperties": True})
    )
    assert accepts(constraint, walker, '{"a":1,"b":"x"}')
    assert not accepts(constraint, walker, '{"\\u0061":"x"}')
    assert not accepts(constraint, walker, '{"a":1,"a":2}')

    below_one = compiler.compile(JsonSchema({"type": "number", "minimum": 0, "exclusiveMaximum": 1}))
    assert accepts(below_one, walker, "0.999")
    assert not accepts(below_one, walker, "0.99999999999999999999")
    assert not accepts(below_one, walker, "1.0")


def test_objects_that_name_their_properties_get_no_others(
    compiler: ConstraintCompiler, walker: Walker
) -> None:
    named = compiler.compile(JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}}))
    assert accepts(named, walker, '{"a": 1}')
    assert accepts(named, walker, "{}")
    assert not accepts(named, walker, '{"b": 1}')

    inherited = compiler.compile(
        JsonSchema(
            {
                "$defs": {"base": {"type": "object", "properties": {"a": {"type": "integer"}}}},
                "allOf": [
                    {"$ref": "#/$defs/base"},
                    {"properties": {"b": {"type": "null"}}, "required": ["b"]},
                ],
            }
        )
    )
    assert accepts(inherited, walker, '{"a": 1, "b": null}')
    assert not accepts(inherited, walker, '{"a": 1, "b": null, "c": 1}')


def test_a_json_object_is_an_object_of_anything(compiler: ConstraintCompiler, walker: Walker) -> None:
    constraint = compiler.compile(JsonObject())
    assert accepts(constraint, walker, '{"a": [1, {"b": null}, "é", -0.5, true]}')
    assert not accepts(constraint, walker, "[1]")
    assert not accepts(constraint, walker, '{"a": 1e999}')
    for seed in range(5):
        text = walker.text(constraint, seed)
        assert text is None or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("pattern", "space"),
    [
        (None, r"(?: |\n(?: {0,32}|\t{0,8}))?"),
        ("", ""),
        ("[ ]?", " ?"),
        (r"[\n ]{0,3}", r"[\n ]{0,3}"),
        (r"\s*", r"\s*"),
    ],
)
def test_whitespace_is_as_asked(
    compiler: ConstraintCompiler, walker: Walker, pattern: str | None, space: str
) -> None:
    constraint = compiler.compile(JsonSchema(PAIR, pattern))
    items = r"(?:-?\d+(?:W,W-?\d+)*W)?"
    layout = r'\{W"a"W:W-?\d+W,W"b"W:W\[W' + items + r"\]W\}"
    for seed in range(10):
        text = walker.text(constraint, seed)
        assert text is not None
        assert re.fullmatch(layout.replace("W", f"(?:{space})"), text), text


@pytest.mark.parametrize("pattern", ["x", ".*", r"\S", "[^a]", "(?i: )", "("])
def test_whitespace_that_json_has_not_is_refused(compiler: ConstraintCompiler, pattern: str) -> None:
    with pytest.raises(InputRefusedError):
        compiler.compile(JsonSchema(PAIR, pattern))


def test_a_choice_is_one_of_its_options(compiler: ConstraintCompiler, walker: Walker) -> None:
    options = ("a", "ab", "", 'q"\\/', "line\nbreak", "да", "😀", "[a-z]+")
    constraint = compiler.compile(Choice(options))
    assert {walker.text(constraint, seed, free_steps=3) for seed in range(60)} == set(options)
    assert all(accepts(constraint, walker, option) for option in options)
    assert not accepts(constraint, walker, "abc")
    assert walker.text(compiler.compile(Choice(("",))), 0) == ""


SUM = """
// sums of numbers
start: sum
sum: product | sum "+" product   # left recursive
?product: NUMBER -> number
    | product "*" NUMBER
    | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
%ignore " "
"""
GBNF = r"""
# a list of words or paths
root  ::= item ("," item)* [/]?
item  ::= word | path
word  ::= [a-z]{2,4} | "\u00e9"
path  ::= "/" ([^/\u0041-\U0010FFFF] [b-f])+
"""


def test_texts_of_a_grammar_are_read_by_it(compiler: ConstraintCompiler, walker: Walker) -> None:
    sums = compiler.compile(Grammar(SUM))
    for seed in range(20):
        text = walker.text(sums, seed, free_steps=10)
        assert text is None or eval(text, {"__builtins__": {}}) > 0  # noqa: S307 - digits, + * ( ) and spaces
    assert accepts(sums, walker, "12 * 3 + (4+5)")
    assert not accepts(sums, walker, "12 + ")


def test_a_gbnf_grammar_is_taken_too(compiler: ConstraintCompiler, walker: Walker) -> None:
    constraint = compiler.compile(Grammar(GBNF))
    for text in ("ab", "abcd,é", "é/", "/-b"):
        assert accepts(constraint, walker, text), text
    for text in ("a", "ab,", "/Ab", "é//"):
        assert not accepts(constraint, walker, text), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule `start`"),
        ('begin: "a"', "no rule `start`"),
        ("start: other", "other"),
        ('start: "a', "line 1"),
        ('start: %json {"type": "object"}', "%json is not supported"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "%llguidance is not supported"),
        ("start: <|im_start|>", "not Lark's"),
        ("start: <[1-100]>", "not Lark's"),
        ("start: @other", "not Lark's"),
        ('start[max_tokens=1]: "a"', "does not belong"),
        ("start: /(?=a)/", "look-around"),
        ('root ::= "a', "GBNF"),
        ('other ::= "a"', "root"),
    ],
)
def test_what_is_no_grammar_is_refused(compiler: ConstraintCompiler, text: str, words: str) -> None:
    with pytest.raises(InputRefusedError, match=re.escape(words)):
        compiler.compile(Grammar(text))


def test_a_grammar_of_our_own_holds_control_tokens_and_schemas(
    compiler: ConstraintCompiler, walker: Walker
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "exclusiveMaximum": 1, "minimum": 0}}}
    layout = {"x-guidance": {"whitespace_pattern": " "}}
    text = f'start: "x%json" call\ncall: <[1]> body\nbody: %json {json.dumps(schema | layout)}\n'
    constraint = compiler.compile(LarkGrammar(text))
    state = constraint.start()
    for part in [*walker.tokenizer.encode("x%json", add_special_tokens=False).ids, 1]:
        state.accept(part)
    for token_id in walker.tokenizer.encode('{"a": 0.99999', add_special_tokens=False).ids:
        state.accept(token_id)
    unfinished = state.copy()
    state.accept(walker.tokenizer.encode("}").ids[0])
    assert (unfinished.finished, state.finished) == (False, True)

    with pytest.raises(InputRefusedError, match="`not` is not supported"):
        compiler.compile(LarkGrammar('start: %json {"not": {}}'))
    with pytest.raises(InputRefusedError, match="no JSON"):
        compiler.compile(LarkGrammar("start: %json oops"))


def test_copies_go_their_own_ways(compiler: ConstraintCompiler, walker: Walker) -> None:
    one = compiler.compile(Choice(("left", "right"))).start()
    other = one.copy()
    left, right = (walker.tokenizer.encode(text).ids for text in ("left", "right"))
    for token_id in left:
        one.accept(token_id)
    assert one.finished
    assert not other.finished
    logits = np.zeros(walker.vocab_size, np.float32)
    other.mask(logits)
    assert logits[left[0]] == logits[right[0]] == 0
    for token_id in right:
        other.accept(token_id)
    assert other.finished


def test_the_mask_covers_all_logits_and_every_end(pack: Path, decoder: Decoder, walker: Walker) -> None:
    ends = [2, 0]
    compiler = ConstraintCompiler(pack / decoder.tokenizer, ends, decoder.vocab_size)
    state = compiler.compile(Regex("a?")).start()
    logits = np.ones(decoder.vocab_size + 100, np.float32)
    state.mask(logits)
    letter = walker.tokenizer.encode("a").ids[0]
    assert sorted(np.flatnonzero(logits == 1)) == sorted([*ends, letter])
    assert np.all(np.isneginf(logits[logits != 1]))

    state.accept(letter)
    assert state.finished
    logits = np.ones(decoder.vocab_size, np.float32)
    state.mask(logits)
    assert sorted(np.flatnonzero(logits == 1)) == sorted(ends)
    state.accept(ends[1])
    assert state.finished


def test_a_token_that_was_not_allowed_is_an_error(compiler: ConstraintCompiler, walker: Walker) -> None:
    state = compiler.compile(Regex("a")).start()
    with pytest.raises(EngineError):
        state.accept(walker.tokenizer.encode("b").ids[0])


def test_the_same_constraint_is_compiled_once(compiler: ConstraintCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    first = compiler.compile(JsonSchema(schema))
    assert compiler.compile(JsonSchema(json.loads(json.dumps(schema)))) is first
    assert compiler.compile(JsonSchema(schema, "")) is not first
    turned = {**schema, "properties": dict(reversed(schema["properties"].items()))}  # type: ignore[attr-defined]
    assert compiler.compile(JsonSchema(turned)) is not first


def test_a_file_that_is_no_tokenizer_is_an_engine_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(EngineError) as caught:
        ConstraintCompiler(path, [2], 100).compile(Regex("a"))
    assert caught.value.status == 500


def test_tokens_stand_for_the_same_bytes_here_and_in_the_answer(pack: Path, decoder: Decoder) -> None:
    path = pack / decoder.tokenizer
    ours, theirs = Tokenizer(path, 1024).token_bytes, LLTokenizer(path.read_text("utf-8"))
    ordinary = [each for each in range(theirs.vocab_size) if not theirs.is_special_token(each)]
    assert len(ordinary) > 48_000
    assert [each for each in ordinary if ours.of(each) != theirs.decode_bytes([each])] == []


def test_a_step_costs_little_beside_the_model(compiler: ConstraintCompiler, walker: Walker) -> None:
    constraint = compiler.compile(JsonSchema(TWENTY_FIELDS))
    random_ids = np.random.default_rng(0)
    seconds, steps = 0.0, 0
    for _ in range(3):
        state = constraint.start()
        while not state.finished:
            logits = random_ids.standard_normal(walker.vocab_size).astype(np.float32)
            started = time.thread_time()
            state.mask(logits)
            token_id = int(logits.argmax())
            state.accept(token_id)
            seconds += time.thread_time() - started
            steps += 1
    # A decode step of one row takes about 8 ms.
    assert seconds / steps < 0.0005
