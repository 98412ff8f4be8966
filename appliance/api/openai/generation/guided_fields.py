"""Constrained answers as requests ask for them: the ``guided_*`` fields and ``response_format``."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from appliance.api.dialect import Dialect
from appliance.engines.generation.constraints.compiler import (
    Choice,
    ConstraintSpec,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
)
from appliance.errors import InvalidRequestError

BACKENDS = ("outlines", "lm-format-enforcer")


class GuidedFields(Protocol):
    """The fields of a body that constrain its answer."""

    guided_json: Any
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None
    guided_whitespace_pattern: str | None
    guided_decoding_backend: str | None
    response_format: dict[str, Any] | None


def constraint_spec(body: GuidedFields, dialect: Dialect) -> ConstraintSpec | None:
    """Return what the body asks for, None when it leaves the answer free.

    Raises InvalidRequestError for fields that contradict each other or have no such value.
    """
    backend = body.guided_decoding_backend
    if backend is not None and backend not in BACKENDS:
        raise InvalidRequestError(
            f"Unknown guided decoding backend '{backend}'. Must be one of 'outlines, 'lm-format-enforcer'",
            param="guided_decoding_backend",
        )
    kinds = (body.guided_json, body.guided_regex, body.guided_choice)
    if sum(kind is not None for kind in kinds) > 1:
        raise InvalidRequestError(
            "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or 'guided_choice')."
        )
    if body.guided_json is not None:
        return JsonSchema(_schema(body.guided_json), body.guided_whitespace_pattern)
    if body.guided_regex is not None:
        return Regex(body.guided_regex)
    if body.guided_choice is not None:
        if not body.guided_choice:
            raise InvalidRequestError("guided_choice must hold at least one text.", param="guided_choice")
        return Choice(tuple(body.guided_choice))
    if body.guided_grammar is not None:
        return Grammar(body.guided_grammar)
    return _response_format(body, dialect)


def _response_format(body: GuidedFields, dialect: Dialect) -> ConstraintSpec | None:
    given = body.response_format
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return JsonObject()
    if kind != "json_schema" or not dialect.json_schema:
        known = "'text', 'json_object' or 'json_schema'" if dialect.json_schema else "'text' or 'json_object'"
        raise InvalidRequestError(f"response_format.type must be {known}.", param="response_format")
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(
            "response_format.json_schema must hold a `schema`.", param="response_format.json_schema"
        )
    return JsonSchema(schema, body.guided_whitespace_pattern)


def _schema(given: Any) -> dict[str, Any] | bool:
    """Return the schema in ``guided_json``, which may be written as JSON text."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InvalidRequestError(
                f"guided_json is not valid JSON: {error}", param="guided_json"
            ) from None
    if not isinstance(given, dict | bool):
        raise InvalidRequestError("guided_json must be a JSON schema.", param="guided_json")
    return given
