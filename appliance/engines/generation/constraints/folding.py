"""JSON schemas with their references followed and their ``allOf`` said in one schema, as far as that goes."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.disjoint import all_apart
from appliance.engines.generation.constraints.keywords import (
    APPLICATORS,
    ARRAY_KEYWORDS,
    MERGED,
    both,
    checked,
    constraining,
)
from appliance.engines.generation.constraints.values import identity, listed

# Schemas looked at, each as often as it is referred to from an ``allOf`` or compared in a ``oneOf``.
MAX_FOLDED = 30_000

_OLD_DRAFT = re.compile(r"https?://json-schema\.org/(draft-0[3-7]|draft/2019-09)/schema#?$")
# Keywords whose meaning depends on their neighbours, and on which.
_PROPERTIES = frozenset({"properties", "patternProperties", "additionalProperties", "unevaluatedProperties"})
_DEPENDENT = {
    "additionalProperties": _PROPERTIES,
    "unevaluatedProperties": _PROPERTIES | APPLICATORS,
    "items": frozenset({"prefixItems", "additionalItems", "unevaluatedItems"}),
    "additionalItems": frozenset({"items", "prefixItems", "unevaluatedItems"}),
    "unevaluatedItems": ARRAY_KEYWORDS | APPLICATORS,
}


class Folding:
    """The schemas inside one document ``root``."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._folded = 0
        self._rebased = False
        self._referred = False
        self._old_draft = isinstance(root, dict) and bool(_OLD_DRAFT.match(str(root.get("$schema"))))

    def folded(self, node: Any, trail: frozenset[str] = frozenset()) -> Any:
        """Return ``node``, checked, with what stands beside ``$ref`` or in ``allOf`` merged where it can be.

        What cannot be merged stays in ``allOf``. A mere reference is returned as it is. ``trail`` holds
        the pointers that lead here. Raises InputRefusedError.
        """
        if isinstance(node, bool):
            return node
        node = self._checked(node)
        if constraining(node) == {"$ref"}:
            return node
        members = options_of(node, "allOf") if "allOf" in node else []
        if "$ref" in node:
            members = [{"$ref": node["$ref"]}, *members]
        node = {keyword: value for keyword, value in node.items() if keyword not in ("allOf", "$ref")}
        left: list[Any] = []
        for each in members:
            member, path = self._followed(each, trail)
            member = self.folded(member, path)
            if member is False:
                return False
            if member is not True and not _merge(node, member):
                left.append(member)
            if node.get("type") == []:
                return False
        left = [*node.pop("allOf", ()), *left]
        return {**node, "allOf": left} if left else node

    def resolved(self, node: Any) -> Any:
        """Return ``node`` folded, and when it is a mere reference, what it refers to. Raises InputRefusedError."""
        return self.folded(*self._followed(node, frozenset()))

    def exclusive(self, node: dict[str, Any]) -> list[Any]:
        """Return the options of ``oneOf``, of which no value fits two. Raises InputRefusedError if one may."""
        options = _only_once(options_of(node, "oneOf"))
        if not all_apart(options, self.resolved):
            raise InputRefusedError("`oneOf` is only supported where its options plainly exclude each other.")
        return options

    def pointer(self, node: dict[str, Any]) -> str:
        """Return the JSON pointer (#…) of a reference. Raises InputRefusedError when it leads elsewhere."""
        reference = node["$ref"]
        if not isinstance(reference, str):
            raise InputRefusedError("`$ref` must be a string.")
        own = self._root.get("$id") if isinstance(self._root, dict) else None
        if isinstance(own, str) and own.rstrip("#"):
            reference = reference.removeprefix(own.rstrip("#"))
        if reference != "#" and not reference.startswith("#/"):
            raise InputRefusedError(
                f"`$ref` may only point into the schema itself (#/…), not to {reference[:100]}."
            )
        self._referred = True
        self._check_base()
        return reference

    def target(self, pointer: str) -> Any:
        """Return what ``pointer`` points to. Raises InputRefusedError when that is nothing."""
        target = self._root
        for step in pointer.split("/")[1:]:
            name = urllib.parse.unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and len(name) < 6 and int(name) < len(target):
                target = target[int(name)]
            else:
                raise InputRefusedError(f"`$ref` points to {pointer[:100]}, where there is nothing.")
        return target

    def _followed(self, node: Any, trail: frozenset[str]) -> tuple[Any, frozenset[str]]:
        while isinstance(node, dict) and constraining(node) == {"$ref"}:
            pointer = self.pointer(node)
            if pointer in trail:
                raise InputRefusedError(
                    "A `$ref` that leads to itself is not supported beside other keywords."
                )
            trail |= {pointer}
            node = self.target(pointer)
        return node, trail

    def _checked(self, node: Any) -> dict[str, Any]:
        self._folded += 1
        if self._folded > MAX_FOLDED:
            raise InputRefusedError(f"The JSON schema is too large: it has more than {MAX_FOLDED} parts.")
        if not isinstance(node, dict):
            raise InputRefusedError("A schema must be an object or a boolean.")
        identifier = node.get("$id")
        if node is not self._root and isinstance(identifier, str) and not identifier.startswith("#"):
            self._rebased = True
            self._check_base()
        found = checked(node)
        if self._old_draft and "prefixItems" in found:
            raise InputRefusedError("`prefixItems` is no keyword of the draft that `$schema` names.")
        return found

    def _check_base(self) -> None:
        if self._rebased and self._referred:
            raise InputRefusedError("`$ref` is not supported in a schema with a nested `$id`.")


def options_of(node: dict[str, Any], keyword: str) -> list[Any]:
    """Return the schemas in ``anyOf`` and the like. Raises InputRefusedError when there are none."""
    options = node[keyword]
    if not isinstance(options, list) or not options:
        raise InputRefusedError(f"`{keyword}` must be a non-empty array.")
    return options


def _only_once(options: list[Any]) -> list[Any]:
    """Return options of a ``oneOf``: mere lists of values as one list of what is in one of them only."""
    lists: list[list[Any]] = []
    for option in options:
        if not isinstance(option, dict) or not constraining(option) <= {"const", "enum", "type"}:
            return options
        if not constraining(option) & {"const", "enum"}:
            return options
        lists.append(listed(checked(option)))
    counts: dict[str, int] = {}
    for values in lists:
        for value in values:
            counts[identity(value)] = counts.get(identity(value), 0) + 1
    return [{"enum": [value for values in lists for value in values if counts[identity(value)] == 1]}]


def _merge(node: dict[str, Any], member: dict[str, Any]) -> bool:
    """Make ``node`` mean what it and ``member`` mean together; leave ``member`` what cannot be merged.

    Returns whether nothing is left.
    """
    for keyword in MERGED:
        if keyword in member:
            node[keyword] = both(node, member, keyword)
    for keyword in member.keys() - (constraining(member) - set(MERGED)):
        del member[keyword]
    for one, other in ((node, member), (member, node)):
        if any(keyword in one and other.keys() & _DEPENDENT[keyword] for keyword in _DEPENDENT):
            return False
    if node.keys() & member.keys() - {"properties"}:
        return False
    properties: dict[str, Any] = {}
    for each in (node.get("properties", {}), member.get("properties", {})):
        if not isinstance(each, dict):
            return False
        for name, value in each.items():
            properties[name] = {"allOf": [properties[name], value]} if name in properties else value
    node.update(member)
    if properties:
        node["properties"] = properties
    return True
