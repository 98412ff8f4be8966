"""Which parts of a schema have a finite value: those that do not need themselves without end."""

from __future__ import annotations

from typing import Any


def without_endless(root: Any, definitions: dict[str, Any]) -> Any:
    """Return ``root`` with the ``definitions`` that it refers to, or False when no finite value is valid.

    References to definitions that have no finite value become False: a model that went there could
    never come to an end.
    """
    finite: set[str] = set()
    grown = True
    while grown:
        grown = False
        # Those that others refer to come later, and are known first this way.
        for name in reversed(definitions):
            if name not in finite and _finite(definitions[name], finite):
                finite.add(name)
                grown = True
    if not _finite(root, finite):
        return False
    kept = {name: _pruned(definitions[name], finite) for name in definitions if name in finite}
    pruned = _pruned(root, finite)
    return {**pruned, "$defs": kept} if kept else pruned


def _finite(node: Any, known: set[str]) -> bool:
    """Return whether ``node`` has a finite value if the definitions in ``known`` have one."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in known:
        return False
    if not all(_finite(each, known) for each in node.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in node and not any(_finite(each, known) for each in node[keyword]):
            return False
    types = node.get("type")
    if types is None or "enum" in node:
        return True
    return any(_finite_as(name, node, known) for name in ([types] if isinstance(types, str) else types))


def _finite_as(name: str, node: dict[str, Any], known: set[str]) -> bool:
    if name == "array":
        first = node.get("prefixItems", [])[: node.get("minItems", 0)]
        more = node.get("minItems", 0) > len(first)
        return all(_finite(item, known) for item in first) and (
            not more or _finite(node.get("items", True), known)
        )
    if name == "object":
        properties = node.get("properties", {})
        return all(_finite(properties.get(each, True), known) for each in node.get("required", ()))
    return True


def _pruned(node: Any, finite: set[str]) -> Any:
    if isinstance(node, list):
        return [_pruned(each, finite) for each in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.removeprefix("#/$defs/") not in finite:
        return False
    return {
        keyword: value if keyword in ("enum", "required", "type") else _pruned_in(keyword, value, finite)
        for keyword, value in node.items()
    }


def _pruned_in(keyword: str, value: Any, finite: set[str]) -> Any:
    if keyword in ("properties", "patternProperties"):
        return {name: _pruned(each, finite) for name, each in value.items()}
    return _pruned(value, finite)
