"""JSON schemas of requests, narrowed to what the constraint engine enforces exactly.

The engine has its own reading of some keywords, and takes what it does not know for annotations.
So a schema is written anew: every keyword that a draft defines is either enforced or refused, and
where the engine or the readers of JSON are inexact, the new schema allows a little less than the
old one. Whatever is valid under the new schema is valid under the old one:

- Objects that name their properties get no others, unless ``additionalProperties`` says otherwise.
- Numbers are plain decimals of bounded length (see ``numbers``).
- Control characters without a short escape appear in no string.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.assertions import Assertions
from appliance.engines.generation.constraints.finite import without_endless
from appliance.engines.generation.constraints.folding import Folding, options_of
from appliance.engines.generation.constraints.keywords import (
    APPLICATORS,
    ARRAY_KEYWORDS,
    ASSERTIONS,
    OBJECT_KEYWORDS,
    TYPES,
    both,
    constraining,
    type_names,
)
from appliance.engines.generation.constraints.values import kind, listed, weight

MAX_PARTS = 2000
MAX_DEFINITIONS = 300
MAX_VALUES = 3000
MAX_DEPTH = 64
# The engine intersects schemas part by part, and keeps every combination.
MAX_COMBINATIONS = 100_000


def narrowed(schema: Any) -> dict[str, Any]:
    """Return the schema to give to the constraint engine for ``schema``, a decoded JSON value.

    Raises InputRefusedError when it is no schema, not supported, too large, or allows no finite value.
    """
    narrowing = _Narrowing(Folding(schema))
    root = without_endless(narrowing.schema(schema, "#", alone=True), narrowing.definitions())
    if not isinstance(root, dict):
        raise InputRefusedError("The JSON schema cannot be satisfied: no finite value is valid under it.")
    return root


class _Narrowing:
    """One document being rewritten."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}
        self._inlined: list[str] = []
        self._parts = self._values = self._depth = self._combinations = 0
        self._assertions = Assertions(self.schema, self._anything)

    def definitions(self) -> dict[str, Any]:
        """Return the schemas that ``#/$defs/`` in the new ones refers to."""
        done = 0
        while done < len(self._names):
            pointer, name = list(self._names.items())[done]
            self._definitions[name] = self.schema(self._folding.target(pointer), pointer, alone=True)
            done += 1
        return self._definitions

    def schema(self, node: Any, where: str, *, alone: bool) -> Any:
        """Return the new form of the schema at ``where``; ``alone`` = nothing else constrains its value.

        True or False when it allows everything or nothing. Raises InputRefusedError.
        """
        self._parts += 1
        self._depth += 1
        if self._parts > MAX_PARTS:
            raise InputRefusedError(f"The JSON schema is too large: it has more than {MAX_PARTS} parts.")
        if self._depth > MAX_DEPTH:
            raise InputRefusedError(f"The JSON schema is nested more than {MAX_DEPTH} deep.")
        with _located(where):
            found = self._schema(node, where, alone)
        self._depth -= 1
        return found

    def _anything(self) -> dict[str, Any]:
        if "any" not in self._definitions:
            self._definitions["any"] = True  # for the recursion
            self._definitions["any"] = self._assertions.of({}, list(TYPES), "#", alone=True)
        return {"$ref": "#/$defs/any"}

    def _schema(self, node: Any, where: str, alone: bool) -> Any:
        node = self._folding.folded(node)
        if isinstance(node, bool):
            return self._anything() if node and alone else node
        if "$ref" in node:
            return self._reference(self._folding.pointer(node), where, alone)
        if not node.keys() & APPLICATORS:
            return self._asserted(node, where, alone) if alone or constraining(node) else True
        if node.keys() & {"enum", "const"}:
            node = self._with_values(node)
            if not node["enum"]:
                return False
        return self._applied(node, where, alone)

    def _reference(self, pointer: str, where: str, alone: bool) -> Any:
        if alone:
            if pointer not in self._names:
                self._names[pointer] = f"d{len(self._names)}"
                if len(self._names) > MAX_DEFINITIONS:
                    raise InputRefusedError(
                        f"A JSON schema may refer to at most {MAX_DEFINITIONS} parts of itself."
                    )
            return {"$ref": f"#/$defs/{self._names[pointer]}"}
        if pointer in self._inlined:
            raise InputRefusedError(
                "A `$ref` that leads to itself is not supported inside other constraints."
            )
        self._inlined.append(pointer)
        found = self.schema(self._folding.target(pointer), where, alone=False)
        self._inlined.pop()
        return found

    def _applied(self, node: dict[str, Any], where: str, alone: bool) -> Any:
        """Return the new form of a folded schema with applicators."""
        parts: list[Any] = []
        # A type beside options is theirs: it does not make them two constraints on one value.
        lone = alone and len(constraining(node) - {"type"}) == 1
        if constraining(node) & (ASSERTIONS - {"type"}) or ("type" in node and "allOf" in node):
            parts.append(self._asserted(node, where, alone=False))
        if "enum" in node:
            parts.append({"enum": node["enum"]})
        parts += [self.schema(each, f"{where}/allOf", alone=False) for each in node.get("allOf", ())]
        if "anyOf" in node:
            parts.append({"anyOf": self._options(node, options_of(node, "anyOf"), f"{where}/anyOf", lone)})
        if "oneOf" in node:
            # Its options exclude each other.
            parts.append(
                {"anyOf": self._options(node, self._folding.exclusive(node), f"{where}/oneOf", lone)}
            )
        if len(parts) == 1:
            return parts[0]
        self._combinations += math.prod(map(weight, parts))
        if self._combinations > MAX_COMBINATIONS:
            raise InputRefusedError("The JSON schema combines too many constraints on the same value.")
        return {"allOf": parts}

    def _asserted(self, node: dict[str, Any], where: str, alone: bool) -> Any:
        return self._assertions.of(node, type_names(node), where, alone=alone)

    def _with_values(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return ``node`` with one list of values, and without the keywords that it was filtered by."""
        values = listed(node)
        self._values += weight(values)
        if self._values > MAX_VALUES:
            raise InputRefusedError(f"The JSON schema lists more than {MAX_VALUES} values.")
        kinds = set(map(kind, values))
        told = (APPLICATORS - {"const"}) | (OBJECT_KEYWORDS if "object" in kinds else set())
        told |= ARRAY_KEYWORDS if "array" in kinds else set()
        told |= {"pattern", "format"} if "string" in kinds else set()
        kept = {keyword: value for keyword, value in node.items() if keyword in told}
        return {**kept, "enum": values}

    def _options(self, node: dict[str, Any], options: list[Any], where: str, alone: bool) -> list[Any]:
        if "type" in node:
            options = [self._of_type(node, option) for option in options]
        return [self.schema(option, f"{where}/{place}", alone=alone) for place, option in enumerate(options)]

    def _of_type(self, node: dict[str, Any], option: Any) -> Any:
        """Return ``option`` under the ``type`` of ``node``."""
        resolved = self._folding.resolved(option)
        if isinstance(resolved, dict) and "type" in resolved:
            names = type_names(resolved) or []
            if set(both(node, resolved, "type")) == set(names):
                return option
        return {"allOf": [{"type": node["type"]}, option]}


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Say in refusals where in the schema the fault is."""
    try:
        yield
    except InputRefusedError as error:
        if error.message.startswith("The JSON schema "):
            raise
        raise InputRefusedError(
            f"The JSON schema cannot be used, at {where[:100]}: {error.message}"
        ) from None
