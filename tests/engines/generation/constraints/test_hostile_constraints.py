"""What cannot be enforced is refused in bounded time, and what can costs little."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.compiler import (
    Choice,
    ConstraintCompiler,
    ConstraintSpec,
    Grammar,
    JsonSchema,
    Regex,
)
from tests.engines.generation.constraints.samples import Walker

# Processor seconds; the wall clock of a busy machine tells nothing.
MOST_SECONDS = 2.0
MOST_STEP_SECONDS = 0.1


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
