"""The guided fields and response_format become constraints, or are refused in the contract's words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from appliance.api.dialect import COMPACTIFAI, COMPRESSA, UNION
from appliance.api.openai.generation.fields import GenerationFields
from appliance.api.openai.generation.guided_fields import constraint_spec
from appliance.engines.generation.constraints.compiler import (
    Choice,
    ConstraintSpec,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
)
from appliance.errors import InvalidRequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def spec_of(fields: dict[str, Any], dialect: Any = UNION) -> ConstraintSpec | None:
    body = msgspec.convert({"model": "m", **fields}, GenerationFields, strict=False)
    return constraint_spec(body, dialect)


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({}, None),
        ({"guided_json": None, "response_format": None}, None),
        ({"guided_json": SCHEMA}, JsonSchema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(SCHEMA)),
        ({"guided_json": "true"}, JsonSchema(True)),
        ({"guided_json": {}}, JsonSchema({})),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"}, JsonSchema(SCHEMA, " ?")),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": ""}, JsonSchema(SCHEMA, "")),
        ({"guided_regex": "a+", "guided_whitespace_pattern": " ?"}, Regex("a+")),
        ({"guided_choice": ["a", "b"]}, Choice(("a", "b"))),
        ({"guided_grammar": 'start: "a"'}, Grammar('start: "a"')),
        ({"guided_regex": "a", "guided_decoding_backend": "outlines"}, Regex("a")),
        ({"guided_regex": "a", "guided_decoding_backend": "lm-format-enforcer"}, Regex("a")),
        ({"guided_decoding_backend": "outlines"}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonObject()),
        ({"response_format": NAMED}, JsonSchema(SCHEMA)),
    ],
)
def test_each_field_is_its_constraint(fields: dict[str, Any], spec: ConstraintSpec | None) -> None:
    assert spec_of(fields) == spec


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"guided_json": SCHEMA, "guided_grammar": 'start: "a"'}, JsonSchema(SCHEMA)),
        ({"guided_regex": "a", "guided_grammar": 'start: "a"'}, Regex("a")),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, Choice(("a",))),
        ({"guided_grammar": 'start: "a"', "response_format": NAMED}, Grammar('start: "a"')),
    ],
)
def test_the_first_of_several_counts(fields: dict[str, Any], spec: ConstraintSpec) -> None:
    assert spec_of(fields) == spec


KINDS = {"guided_json": SCHEMA, "guided_regex": "a", "guided_choice": ["a"]}


@pytest.mark.parametrize("left_out", [*KINDS, ""])
def test_json_expression_and_choice_exclude_each_other(left_out: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec_of({name: value for name, value in KINDS.items() if name != left_out})
    assert caught.value.message == (
        "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or 'guided_choice')."
    )


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"guided_decoding_backend": "xgrammar"},
            "guided_decoding_backend",
            "Unknown guided decoding backend 'xgrammar'. Must be one of 'outlines, 'lm-format-enforcer'",
        ),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_json": ""}, "guided_json", "not valid JSON"),
        ({"guided_json": '{"a": NaN}'}, "guided_json", "not valid JSON"),
        ({"guided_json": "[" * 100_000}, "guided_json", "not valid JSON"),
        ({"guided_json": "[1]"}, "guided_json", "must be a JSON schema"),
        ({"guided_json": 5}, "guided_json", "must be a JSON schema"),
        ({"guided_json": ["a"]}, "guided_json", "must be a JSON schema"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"response_format": {}}, "response_format", "type"),
        ({"response_format": {"type": "xml"}}, "response_format", "type"),
        ({"response_format": {"type": ["text"]}}, "response_format", "type"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 1}}, "response_format", "schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format",
            "schema",
        ),
    ],
)
def test_what_is_no_constraint_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec_of(fields)
    assert caught.value.status == 400
    assert words in caught.value.message
    assert caught.value.param is not None
    assert caught.value.param.partition(".")[0] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guided_regex", 5),
        ("guided_choice", "a"),
        ("guided_choice", [1]),
        ("guided_grammar", {}),
        ("guided_whitespace_pattern", []),
        ("guided_decoding_backend", 1),
        ("response_format", "json_object"),
    ],
)
def test_a_value_of_another_type_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        spec_of({field: value})


def test_a_strict_mount_may_know_no_schemas() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec_of({"response_format": NAMED}, COMPRESSA)
    assert caught.value.param == "response_format"
    assert spec_of({"response_format": {"type": "json_object"}}, COMPRESSA) == JsonObject()
    assert spec_of({"guided_json": SCHEMA}, COMPRESSA) == JsonSchema(SCHEMA)
    assert spec_of({"response_format": NAMED}, COMPACTIFAI) == JsonSchema(SCHEMA)
