"""The service beside itself: what a constraint costs, and what HTTP and its event stream cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.benchmarks.completions import Side, Stream, total_speed
from tests.benchmarks.engine_process import EngineProcess
from tests.benchmarks.figures import OURS, Comparison, Figure, Round, Wanted, alternate, in_turns
from tests.benchmarks.generation_scenarios import speed
from tests.benchmarks.prompts import ColdPrompts
from tests.benchmarks.section import Plan

PROMPT, TOKENS = 32, 128
UNCONSTRAINED = "the same without a constraint"
WITHOUT_HTTP = "the engine without HTTP"
CONSTRAINED = {
    count: speed(f"guided_json of 20 fields, {count} stream{'s' * (count > 1)}, {PROMPT} + {TOKENS} tokens")
    for count in (1, 8)
}
HTTP = speed(f"8 streams over HTTP, {PROMPT} + {TOKENS} tokens")
WANTED = {
    **{figure.name: Wanted(0.9) for figure in CONSTRAINED.values()},
    HTTP.name: Wanted(0.95),
}


def schema() -> dict[str, Any]:
    """Return the JSON schema of an order: 20 fields of all kinds, each valid answer well over 128 tokens long."""
    text = {"type": "string", "minLength": 24, "maxLength": 60}
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("customer_name", text),
        ("street_and_number", text),
        ("postal_code", {"type": "string", "pattern": "^[0-9]{5}$"}),
        ("city", text),
        ("country", {"enum": ["Austria", "France", "Germany", "Italy", "Switzerland"]}),
        ("quantity", {"type": "integer", "minimum": 1, "maximum": 9999}),
        ("unit_price", {"type": "number"}),
        ("express", {"type": "boolean"}),
        ("tags", {"type": "array", "items": text, "minItems": 2, "maxItems": 3}),
        ("remark", {"anyOf": [text, {"type": "null"}]}),
    )
    properties = {f"{name}_{half}": kind for half in ("billed", "shipped") for name, kind in kinds}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def costs(plan: Plan, service: Side, engine: EngineProcess, source: ColdPrompts) -> list[Comparison]:
    """Measure both on one running service; ``engine`` is the same pack and profile in a process without HTTP."""
    found: list[Comparison] = []
    for count, figure in CONSTRAINED.items():
        found += alternate([figure], _constrained(count, figure, service, source), plan.rounds, plan.say)
    found += alternate([HTTP], _over_http(service, engine, source), plan.rounds, plan.say)
    return found


def _constrained(count: int, figure: Figure, service: Side, source: ColdPrompts) -> Round:
    # A constraint ends the answer where nothing may follow: the schema must be longer than the answer.
    bodies: Mapping[str, dict[str, Any]] = {
        OURS: {"guided_json": schema(), "ignore_eos": False},
        UNCONSTRAINED: {},
    }

    def turn(prompts: list[list[int]], fields: dict[str, Any]) -> dict[str, float]:
        streams: list[Stream] = asyncio.run(service.complete_all(prompts, TOKENS, **fields))
        return {figure.name: total_speed(streams)}

    def measure(number: int) -> dict[str, dict[str, float]]:
        prompts = [source.ids(f"constrained {count} {number} {index}", PROMPT) for index in range(count)]
        return in_turns({name: partial(turn, prompts, fields) for name, fields in bodies.items()}, number)

    return measure


def _over_http(service: Side, engine: EngineProcess, source: ColdPrompts) -> Round:
    def over_http(prompts: list[list[int]]) -> dict[str, float]:
        return {HTTP.name: total_speed(asyncio.run(service.complete_all(prompts, TOKENS)))}

    def without(prompts: list[list[int]]) -> dict[str, float]:
        return {HTTP.name: len(prompts) * TOKENS / engine.seconds(prompts, TOKENS)}

    def measure(number: int) -> dict[str, dict[str, float]]:
        prompts = [source.ids(f"http {number} {index}", PROMPT) for index in range(8)]
        return in_turns({OURS: partial(over_http, prompts), WITHOUT_HTTP: partial(without, prompts)}, number)

    return measure
