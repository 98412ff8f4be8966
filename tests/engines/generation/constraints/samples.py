"""Random JSON schemas and regular expressions, random texts under a constraint, and what it takes."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from appliance.engines.generation.contract import Constraint

# Steps after which a walk heads for the end.
FREE_STEPS = 40
MOST_STEPS = 3000

WORDS = [
    "id",
    "name",
    "größe",
    "tags",
    "a b",
    'q"uote',
    "back\\slash",
    "x/y",
    "имя",
    "n\nl",
    "$ref",
    "type",
    "😀",
]
PATTERNS = [
    "^[a-z]{2,5}$",
    "^[A-Z][a-z]+( [A-Z][a-z]+)*$",
    r"^\d{3}-\d{4}",
    "^(foo|bar)+$",
    "^$|^x",
    r"^\S+@\S+\.\w{2,3}$",
    r"^[^\d\s]{1,4}$",
    "[aeiou]",
    "^.{3}$",
    r"^\W\D\d?$",
    "a|^b$|c$",
    r'^["\\/]{1,3}$',
]
# fmt: off
PIECES: list[str] = [
    *"abcXYZ019-_", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", r"\.", r"\[", r"\x41", "é", "Ж", "☃",
    "[a-z]", "[^a-z]", r"[\w.-]", r"[^\s\d]", "[]x]", "[a&&b]", r"[\]\\^-]", r"[^\W_]", "[А-Я]",
]
# fmt: on
FORMATS = ["date", "time", "date-time", "ipv4", "ipv6", "uuid", "email"]


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    """Return a schema that some value satisfies, with keywords of every kind."""
    makers = [_integer, _number, _string, _listed, _plain]
    if depth:
        makers += [_array, _object, _object, _any_of, _one_of, _all_of, _nullable]
    return draw.choice(makers)(draw, depth)


def document(draw: random.Random) -> Any:
    """Return a whole schema: sometimes with definitions, one of them recursive."""
    schema = random_schema(draw)
    if draw.random() < 0.7 or not isinstance(schema, dict):
        return schema
    tree = {
        "type": "object",
        "properties": {
            "value": random_schema(draw, 1),
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            "next": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
        },
        "required": ["value"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"tree": tree, "leaf~/x": random_schema(draw, 1)},
        "type": "object",
        "properties": {
            "tree": {"$ref": "#/$defs/tree"},
            "leaf": {"$ref": "#/$defs/leaf~0~1x"},
            "own": schema,
        },
        "required": draw.sample(["tree", "leaf", "own"], draw.randint(0, 3)),
    }


def wild_schema(draw: random.Random, depth: int = 2) -> Any:
    """Return a schema of keywords thrown together: often not supported or unsatisfiable, never wrong in form."""
    if draw.random() < 0.08:
        return draw.random() < 0.6
    inner = depth - 1
    sub: Callable[[], Any] = (lambda: wild_schema(draw, inner)) if depth else (lambda: random_schema(draw, 0))
    names = draw.sample(["a", "b", "c"], draw.randint(0, 3))
    makers: dict[str, Callable[[], Any]] = {
        "type": lambda: draw.choice(
            ["integer", "object", "array", ["string", "number"], ["integer", "null"]]
        ),
        "enum": lambda: [_value(draw, 1) for _ in range(4)],
        "const": lambda: draw.choice([1, 1.0, True, "a", None, {"a": 1}, [1, "b"]]),
        "minimum": lambda: draw.choice([-5, 0, 2.5]),
        "exclusiveMaximum": lambda: draw.choice([3, 10, 10.5]),
        "multipleOf": lambda: draw.choice([1, 2, 1.5]),
        "minLength": lambda: draw.randint(0, 2),
        "maxLength": lambda: draw.randint(1, 6),
        "pattern": lambda: draw.choice(["^[ab]*$", "a", "^.$", "b$"]),
        "format": lambda: draw.choice(["date", "ipv4"]),
        "items": sub,
        "prefixItems": lambda: [sub() for _ in range(draw.randint(1, 2))],
        "minItems": lambda: draw.randint(0, 2),
        "maxItems": lambda: draw.randint(0, 3),
        "uniqueItems": lambda: draw.random() < 0.2,
        "unevaluatedItems": sub,
        "properties": lambda: {name: sub() for name in names},
        "required": lambda: draw.sample(["a", "b", "c", "d"], draw.randint(0, 2)),
        "additionalProperties": sub,
        "patternProperties": lambda: {draw.choice(["^[ab]$", "^x", "c"]): sub()},
        "propertyNames": lambda: draw.choice(
            [{"pattern": "^[a-d]$"}, {"enum": ["a", "b"]}, {"maxLength": 3}]
        ),
        "unevaluatedProperties": sub,
        "minProperties": lambda: draw.randint(0, 2),
        "maxProperties": lambda: draw.randint(1, 3),
        "allOf": lambda: [sub() for _ in range(draw.randint(1, 2))],
        "anyOf": lambda: [sub() for _ in range(draw.randint(1, 2))],
        "oneOf": lambda: [sub() for _ in range(draw.randint(1, 2))],
        "not": sub,
        "$ref": lambda: draw.choice(["#/$defs/one", "#/$defs/two", "#"]),
        "description": lambda: "something",
    }
    chosen = draw.sample(list(makers), draw.choice([1, 2, 2, 3, 3, 4, 5]))
    if draw.random() < 0.5 and "type" not in chosen:
        chosen.append("type")
    return {keyword: makers[keyword]() for keyword in chosen}


def wild_document(draw: random.Random) -> Any:
    """Return a wild schema with the definitions that it may refer to."""
    schema = wild_schema(draw)
    if not isinstance(schema, dict):
        return schema
    return {**schema, "$defs": {"one": wild_schema(draw, 1), "two": wild_schema(draw, 1)}}


def _plain(draw: random.Random, depth: int) -> Any:
    return draw.choice(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"type": "string"}, {}]
    )


def _integer(draw: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "integer"}
    low = draw.choice([-1000, -7, 0, 1, 9, 12345, 10**9])
    if draw.random() < 0.6:
        schema[draw.choice(["minimum", "exclusiveMinimum"])] = low
    if draw.random() < 0.6:
        schema[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([20, 345, 10**6])
    if draw.random() < 0.3:
        schema["multipleOf"] = draw.choice([2, 3, 5, 7, 2.5])
    return schema


def _number(draw: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "number"}
    low = draw.choice([-1e6, -1.5, -0.1, 0, 0.1, 0.3, 1 / 3, 99.99, 1e9])
    if draw.random() < 0.7:
        schema[draw.choice(["minimum", "exclusiveMinimum"])] = low
    if draw.random() < 0.7:
        schema[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([1, 0.5, 7.77, 1e5])
    if draw.random() < 0.2:
        schema["multipleOf"] = draw.choice([0.5, 0.25, 1, 0.125])
        schema["maximum"] = low + 3
        schema.pop("exclusiveMaximum", None)
    return schema


def _string(draw: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    form = draw.random()
    if form < 0.3:
        schema["pattern"] = draw.choice(PATTERNS)
    elif form < 0.5:
        schema["format"] = draw.choice(FORMATS)
    elif form < 0.8:
        schema["minLength"] = draw.randint(0, 4)
        schema["maxLength"] = schema["minLength"] + draw.randint(0, 20)
    return schema


def _value(draw: random.Random, depth: int) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: draw.choice(WORDS),
        lambda: draw.randint(-(10**6), 10**6),
        lambda: draw.choice([0.5, -1.25, 1e-7, 3.0, 1e15]),
        lambda: draw.choice([True, False, None]),
    ]
    if depth:
        makers.append(lambda: [_value(draw, 0) for _ in range(draw.randint(0, 3))])
        makers.append(lambda: {draw.choice(WORDS): _value(draw, 0) for _ in range(draw.randint(0, 3))})
    return draw.choice(makers)()


def _listed(draw: random.Random, depth: int) -> Any:
    if draw.random() < 0.3:
        return {"const": _value(draw, depth)}
    return {"enum": [_value(draw, depth) for _ in range(draw.randint(1, 5))]}


def _array(draw: random.Random, depth: int) -> Any:
    schema: dict[str, Any] = {"type": "array"}
    if draw.random() < 0.7:
        schema["items"] = random_schema(draw, depth - 1)
    if draw.random() < 0.3:
        schema["prefixItems"] = [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 2))]
    if draw.random() < 0.5:
        schema["minItems"] = draw.randint(0, 3)
    if draw.random() < 0.7:
        schema["maxItems"] = schema.get("minItems", 0) + draw.randint(0, 3)
    return schema


def _object(draw: random.Random, depth: int) -> Any:
    names = draw.sample(WORDS, draw.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
    }
    more = draw.random()
    if more < 0.2:
        schema["additionalProperties"] = False
    elif more < 0.4:
        schema["additionalProperties"] = random_schema(draw, depth - 1)
    elif more < 0.5:
        schema["patternProperties"] = {"^x_[a-z]{1,3}$": random_schema(draw, depth - 1)}
        schema["additionalProperties"] = draw.choice([False, {"type": "integer"}])
    elif more < 0.6:
        schema["maxProperties"] = len(names)
        schema["required"] = names
    return schema


def _any_of(draw: random.Random, depth: int) -> Any:
    options = [random_schema(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    return {"anyOf": options} if draw.random() < 0.8 else {"anyOf": [*options, False], "title": "any"}


def _one_of(draw: random.Random, depth: int) -> Any:
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": random_schema(draw, depth - 1)},
                "required": ["kind", "value"],
            }
            for kind in ("a", "b", "c")
        ]
    }


def _all_of(draw: random.Random, depth: int) -> Any:
    return {
        "allOf": [
            {"type": "object", "properties": {"base": random_schema(draw, depth - 1)}, "required": ["base"]},
            {"properties": {"own": random_schema(draw, depth - 1)}},
        ]
    }


def _nullable(draw: random.Random, depth: int) -> Any:
    return {
        "type": ["object", "null"],
        "properties": {"x": random_schema(draw, depth - 1)},
        "required": ["x"],
    }


def random_pattern(draw: random.Random, depth: int = 3) -> str:
    """Return a regular expression that Python reads too and that some text matches."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(PIECES)
    form = draw.random()
    inner = [random_pattern(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    if form < 0.4:
        return "".join(inner)
    if form < 0.6:
        return f"({draw.choice(['', '?:', f'?P<n{draw.randrange(10**9)}>'])}{'|'.join(inner)})"
    return f"(?:{inner[0]})" + draw.choice(["?", "*", "+", "{2}", "{1,3}", "{0,2}?", "+?", "{2,}"])


class Walker:
    """Walks constraints with one tokenizer: at random at first, then towards the end."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, ends: list[int]) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.ends = ends
        short = [
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if set(token) <= set('"}],') or (len(token) == 1 and token in string.printable)
        ]
        self._short = np.zeros(self.vocab_size, np.bool_)
        self._short[short] = True

    def text(self, constraint: Constraint, seed: int, free_steps: int = FREE_STEPS) -> str | None:
        """Return a random text under ``constraint``; None when it came to no end in time."""
        random_ids = np.random.default_rng(seed)
        state = constraint.start()
        ids: list[int] = []
        logits = np.empty(self.vocab_size, np.float32)
        for step in range(MOST_STEPS):
            logits.fill(0)
            state.mask(logits)
            allowed = np.flatnonzero(logits == 0)
            assert allowed.size, f"no token may follow {self.tokenizer.decode(ids)!r}"
            token = self._chosen(allowed, random_ids, free=step < free_steps)
            assert token in self.ends or not state.finished
            state.accept(token)
            if token in self.ends:
                return str(self.tokenizer.decode(ids, skip_special_tokens=False))
            ids.append(token)
        return None

    def _chosen(self, allowed: NDArray[np.intp], random_ids: np.random.Generator, *, free: bool) -> int:
        if not free and self.ends[0] in allowed:
            return self.ends[0]
        short = allowed[self._short[allowed]]
        if short.size and random_ids.random() < (0.3 if free else 0.95):
            return int(random_ids.choice(short))
        return int(random_ids.choice(allowed))


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
