"""Constraints that nothing satisfies, that are wrong or not supported are refused, and told why."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.compiler import (
    ConstraintCompiler,
    ConstraintSpec,
    Grammar,
    JsonSchema,
    Regex,
)


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
