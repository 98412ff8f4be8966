"""Whether two schemas have no value in common, where that can be told at a glance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from appliance.engines.generation.constraints.keywords import TYPES, type_names
from appliance.engines.generation.constraints.values import identity, kind, listed

MAX_OPTIONS = 100
MAX_DEPTH = 4
# Discriminators stand early in ``required``.
MAX_NAMES = 32

# Returns a schema with its references followed and its keywords checked.
Resolve = Callable[[Any], Any]


def all_apart(options: Sequence[Any], resolve: Resolve) -> bool:
    """Return whether no value is valid under two of the schemas ``options``; False when in doubt."""
    if len(options) > MAX_OPTIONS:
        return False
    resolved = [resolve(option) for option in options]
    return all(_apart(one, other, resolve, 0) for one, other in itertools.combinations(resolved, 2))


def _apart(one: Any, other: Any, resolve: Resolve, depth: int) -> bool:
    if one is False or other is False:
        return True
    if one is True or other is True or depth > MAX_DEPTH:
        return False
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return {identity(value) for value in values}.isdisjoint(identity(value) for value in others)
    common = _kinds(one, values) & _kinds(other, others)
    if common != {"object"}:
        return not common
    names = [*one.get("required", ()), *other.get("required", ())][:MAX_NAMES]
    return any(
        _apart(resolve(_property(one, name)), resolve(_property(other, name)), resolve, depth + 1)
        for name in names
    )


def _values(node: dict[str, Any]) -> list[Any] | None:
    return listed(node) if "enum" in node or "const" in node else None


def _kinds(node: dict[str, Any], values: list[Any] | None) -> set[str]:
    if values is not None:
        return set(map(kind, values))
    names = type_names(node)
    return set(TYPES) if names is None else {"number" if name == "integer" else name for name in names}


def _property(node: dict[str, Any], name: str) -> Any:
    properties = node.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    return node.get("additionalProperties") is not False or "patternProperties" in node
