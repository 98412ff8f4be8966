"""Constraints mean what they say; a compiled one is shared, copied and cheap to follow."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.constraints.compiler import (
    Choice,
    ConstraintCompiler,
    JsonObject,
    JsonSchema,
    Regex,
)
from appliance.engines.generation.text.tokenizer import Tokenizer
from appliance.packs.manifest import Decoder
from tests.engines.generation.constraints.samples import Walker, accepts

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
