"""Two hundred forms drawn at random: every answer, streamed or not, of every choice, is what its form says."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.api.asking import chat, chat_events, joined_chat
from tests.service import Service

FORMS = 200
CHOICES = 3
AT_ONCE = 8
NAMES = ["a", "size", "name of it", "naïve", "x_1"]
PATTERNS = ["[a-f]{1,4}", "(red|blue)-[0-9]{2}", "[A-Z][a-z]?", "я?[а-в]{1,2}"]


def drawn_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    """Return a schema whose values are short."""
    kinds = ["enum", "const", "integer", "boolean", "null", "pattern", "string"]
    match draw.choice(kinds + ["array", "object", "object", "anyOf"] * (depth > 0)):
        case "enum":
            return {"enum": draw.sample(["red", 1, None, True, "blue sky", [1], {"k": "v"}], 3)}
        case "const":
            return {"const": draw.choice(["fixed", 7, False, [1, 2]])}
        case "integer":
            low = draw.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 200)}
        case "pattern":
            return {"type": "string", "pattern": f"^{draw.choice(PATTERNS)}$"}
        case "string":
            low = draw.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": low + draw.randint(0, 5)}
        case "array":
            low = draw.randint(0, 2)
            items = drawn_schema(draw, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + draw.randint(0, 1)}
        case "object":
            names = draw.sample(NAMES, draw.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: drawn_schema(draw, depth - 1) for name in names},
                "required": names[: draw.randint(0, len(names))],
                "additionalProperties": False,
            }
        case "anyOf":
            return {"anyOf": [drawn_schema(draw, depth - 1) for _ in range(2)]}
        case kind:
            return {"type": kind}


def drawn_pattern(draw: random.Random) -> str:
    """Return a pattern of some pieces, each of bounded length."""
    pieces = ["[a-e]", "(ab|c)", "[0-9]", r"\d", "x", "é", r"\.", "[^a-z\\s]", "(?:да|нет)", "🌈"]
    counts = ["", "?", "{2}", "{1,3}"]
    return "".join(draw.choice(pieces) + draw.choice(counts) for _ in range(draw.randint(1, 5)))


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Say whether a value is valid under a schema of those that are drawn here."""
    if "anyOf" in schema:
        return any(is_valid(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return any(value == each and type(value) is type(each) for each in allowed)
    match schema["type"]:
        case "integer":
            return type(value) is int and value in range(schema["minimum"], schema["maximum"] + 1)
        case "boolean":
            return type(value) is bool
        case "null":
            return value is None
        case "string":
            if not isinstance(value, str):
                return False
            if "pattern" in schema:
                return re.search(schema["pattern"], value) is not None
            return len(value) in range(schema["minLength"], schema["maxLength"] + 1)
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_valid(item, schema["items"]) for item in value)
            )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(schema["properties"])
        and all(is_valid(item, schema["properties"][name]) for name, item in value.items())
    )


def wrong_texts(service: Service, place: int) -> tuple[int, list[str]]:
    """Ask for the form at ``place``; return how many answers ended by themselves, and the wrong ones."""
    draw = random.Random(place)
    form: dict[str, Any]
    if draw.random() < 0.5:
        form = {"guided_regex": drawn_pattern(draw)}
    else:
        schema = drawn_schema(draw)
        form = draw.choice(
            [
                {"guided_json": schema, "guided_whitespace_pattern": " ?"},
                {"guided_json": json.dumps(schema)},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
            ]
        )
    asked = {**form, "n": CHOICES, "temperature": 1, "seed": place, "max_tokens": 100}
    if draw.random() < 0.5:
        found = joined_chat(chat_events(service, **asked))
        texts = [(found[index]["content"], found[index]["finish_reason"]) for index in range(CHOICES)]
    else:
        choices = chat(service, **asked)["choices"]
        texts = [(choice["message"]["content"], choice["finish_reason"]) for choice in choices]
    ended = [text for text, reason in texts if reason == "stop"]
    wrong: list[str]
    if "guided_regex" in form:
        wrong = [text for text in ended if not re.fullmatch(form["guided_regex"], text)]
    else:
        wrong = [text for text in ended if not _is_json_of(text, schema)]
    return len(ended), [f"{text!r} for {form}" for text in wrong]


def _is_json_of(text: str, schema: dict[str, Any]) -> bool:
    try:
        return is_valid(json.loads(text), schema)
    except json.JSONDecodeError:
        return False


def test_answers_are_what_their_forms_say(service: Service) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda place: wrong_texts(service, place), range(FORMS)))

    assert [text for _, wrong in found for text in wrong] == []
    # The limit may cut some of those that may hold any white space, not many.
    assert sum(ended for ended, _ in found) >= 0.95 * FORMS * CHOICES


def test_the_check_itself_knows_right_from_wrong() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": [True]}},
        "required": ["a"],
        "additionalProperties": False,
    }

    others: list[Any] = [{}, {"a": 10}, {"a": 3, "b": 1}, {"a": 3, "c": 1}, {"a": True}, []]
    assert is_valid({"a": 3, "b": True}, schema)
    assert not any(is_valid(other, schema) for other in others)
