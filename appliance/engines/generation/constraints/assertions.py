"""What a schema says of values of each type, in keywords that the constraint engine enforces exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.formats import HINTS, NAMES, NATIVE, PATTERNS
from appliance.engines.generation.constraints.keywords import (
    APPLICATORS,
    ARRAY_KEYWORDS,
    OBJECT_KEYWORDS,
    STRING_KEYWORDS,
    TYPES,
    checked,
    type_names,
)
from appliance.engines.generation.constraints.numbers import KEYWORDS as NUMBER_KEYWORDS
from appliance.engines.generation.constraints.numbers import LARGEST_DIVISOR, numbers
from appliance.engines.generation.constraints.regex import within_json
from appliance.engines.generation.constraints.values import check_text, listed

# Optional properties beyond these are too many states for the constraint engine.
MAX_PROPERTIES = 1000


class Rewrite(Protocol):
    """Rewrites a schema inside the one at hand."""

    def __call__(self, node: Any, where: str, *, alone: bool) -> Any:
        """Return the new form of ``node``."""
        ...


class Assertions:
    """Rewrites the keywords of one schema object; ``rewrite`` does those inside it."""

    def __init__(self, rewrite: Rewrite, anything: Callable[[], Any]) -> None:
        """``anything`` returns the schema of any value."""
        self._rewrite = rewrite
        self._anything = anything
        self._divisors = 0

    def of(self, node: dict[str, Any], types: list[str] | None, where: str, *, alone: bool) -> Any:
        """Return the new form of the checked ``node`` without its applicators; False when it allows nothing.

        ``types`` are its type names, None = all. Raises InputRefusedError for what is not supported.
        """
        told = types is not None
        left = list(TYPES) if types is None else types
        new: dict[str, Any] = {}
        for name in list(left):
            found = self._of_type(name, node, where, alone)
            if found is None:
                left = [each for each in left if each != name]
                told = True
            else:
                new.update(found)
        if not left:
            return False
        if told or alone:
            new["type"] = left[0] if len(left) == 1 else left
        return new

    def _of_type(self, name: str, node: dict[str, Any], where: str, alone: bool) -> dict[str, Any] | None:
        keys = node.keys()
        if name in ("number", "integer"):
            if not alone and not keys & set(NUMBER_KEYWORDS):
                return {}
            found = numbers(node, integer=name == "integer", bounded=alone)
            if "multipleOf" in node:
                self._divisors += int(node["multipleOf"])
                if self._divisors > LARGEST_DIVISOR:
                    raise InputRefusedError(f"All `multipleOf` together may be at most {LARGEST_DIVISOR}.")
            return found
        if name == "string":
            return _strings(node) if keys & STRING_KEYWORDS else {}
        if name == "array":
            return self._arrays(node, where, alone) if alone or keys & ARRAY_KEYWORDS else {}
        if name == "object":
            return self._objects(node, where, alone) if alone or keys & OBJECT_KEYWORDS else {}
        return {}

    def _arrays(self, node: dict[str, Any], where: str, alone: bool) -> dict[str, Any] | None:
        least, most = node.get("minItems", 0), node.get("maxItems")
        if most is not None and least > most:
            return None
        if node.get("uniqueItems") and (most is None or most > 1):
            raise InputRefusedError("`uniqueItems` is not supported.")
        first, others = self._items(node)
        new: dict[str, Any] = {}
        if first:
            new["prefixItems"] = [
                self._rewrite(item, f"{where}/prefixItems/{place}", alone=alone)
                for place, item in enumerate(first)
            ]
        if others is not True or alone:
            new["items"] = self._rewrite(others, f"{where}/items", alone=alone)
        if least:
            new["minItems"] = least
        if most is not None:
            new["maxItems"] = most
        return new

    def _items(self, node: dict[str, Any]) -> tuple[list[Any], Any]:
        """Return the schemas of the first items, and that of the others."""
        items = node.get("items", True)
        if isinstance(items, list):
            # As drafts before 2020-12 had it.
            if "prefixItems" in node:
                raise InputRefusedError("`items` must be a schema beside `prefixItems`.")
            return items, node.get("additionalItems", self._unevaluated(node, "unevaluatedItems"))
        first = node.get("prefixItems", [])
        if not isinstance(first, list):
            raise InputRefusedError("`prefixItems` must be an array.")
        return first, items if "items" in node else self._unevaluated(node, "unevaluatedItems")

    def _unevaluated(self, node: dict[str, Any], keyword: str) -> Any:
        value = node.get(keyword, True)
        if value is not True and node.keys() & APPLICATORS:
            raise InputRefusedError(f"`{keyword}` is not supported beside other schemas.")
        return value

    def _objects(self, node: dict[str, Any], where: str, alone: bool) -> dict[str, Any] | None:
        required: list[str] = list(dict.fromkeys(node.get("required", [])))
        least, most = node.get("minProperties", 0), node.get("maxProperties")
        if most is not None and max(least, len(required)) > most:
            return None
        properties, patterns, others = self._members(node, required, alone)
        if (others is not False or patterns) and least - len(required) > 1:
            # The same name may come twice, and counts once.
            raise InputRefusedError("`minProperties` of properties that are not named is not supported.")
        new: dict[str, Any] = {}
        if properties:
            new["properties"] = {
                name: self._rewrite(value, f"{where}/properties/{name}", alone=alone)
                for name, value in properties.items()
            }
        if patterns:
            new["patternProperties"] = {
                f"^(?:{within_json(pattern)})$": self._rewrite(
                    value, f"{where}/patternProperties/{pattern}", alone=alone
                )
                for pattern, value in patterns.items()
            }
            if len(new["patternProperties"]) < len(patterns):
                raise InputRefusedError("`patternProperties` has the same expression twice.")
        if others is not None:
            new["additionalProperties"] = self._rewrite(others, f"{where}/additionalProperties", alone=alone)
        if required:
            new["required"] = required
        if least:
            new["minProperties"] = least
        if most is not None:
            new["maxProperties"] = most
        return new

    def _members(
        self, node: dict[str, Any], required: list[str], alone: bool
    ) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """Return the schemas of an object's members: by name, by pattern, and of others (None = not told)."""
        properties, patterns = _schemas(node, "properties"), _schemas(node, "patternProperties")
        if len(properties) > MAX_PROPERTIES or len(required) > MAX_PROPERTIES:
            raise InputRefusedError(f"An object may name at most {MAX_PROPERTIES} properties.")
        for name in (*properties, *required):
            check_text(name)
        others = node.get("additionalProperties")
        if others is None and "unevaluatedProperties" in node:
            others = self._unevaluated(node, "unevaluatedProperties")
        named = {*properties, *required}
        if (
            others is None
            and alone
            and properties
            and not patterns
            and node.get("minProperties", 0) <= len(named)
        ):
            # The schema does not forbid others, but names those that it wants.
            properties = {**properties, **{name: True for name in required if name not in properties}}
            others = False
        if others is None and alone:
            others = True
        if "propertyNames" in node:
            patterns, others = _named(node, properties, patterns, True if others is None else others)
        return properties, patterns, others


def _strings(node: dict[str, Any]) -> dict[str, Any] | None:
    least, most = node.get("minLength", 0), node.get("maxLength")
    if most is not None and least > most:
        return None
    new: dict[str, Any] = {}
    patterns = []
    if "pattern" in node:
        if not isinstance(node["pattern"], str):
            raise InputRefusedError("`pattern` must be a string.")
        patterns.append(node["pattern"])
    if "format" in node:
        form = str(node["format"])
        if form in PATTERNS:
            patterns.append(PATTERNS[form])
        elif form in NATIVE:
            new["format"] = form
        elif form not in HINTS:
            raise InputRefusedError(f"The `format` is not supported; these are: {', '.join(NAMES)}.")
    if patterns:
        new["pattern"] = f"^(?:{within_json(patterns[0])})$"
    for pattern in patterns[1:]:
        new["allOf"] = [{"type": list(TYPES), "pattern": f"^(?:{within_json(pattern)})$"}]
    if least:
        new["minLength"] = least
    if most is not None:
        new["maxLength"] = most
    return new


def _schemas(node: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = node.get(keyword, {})
    if not isinstance(value, dict):
        raise InputRefusedError(f"`{keyword}` must be an object.")
    return value


def _named(
    node: dict[str, Any], properties: dict[str, Any], patterns: dict[str, Any], others: Any
) -> tuple[dict[str, Any], Any]:
    """Return the patterns and other properties under which names are as ``propertyNames`` says."""
    names = node["propertyNames"]
    if names is True or names == {}:
        return patterns, others
    if properties or patterns or not isinstance(names, dict):
        raise InputRefusedError("`propertyNames` is only supported without named properties.")
    names = checked(names)
    if "string" not in (type_names(names) or TYPES):
        return {}, False
    told = names.keys() & {*STRING_KEYWORDS, *APPLICATORS}
    if told == {"pattern"} and isinstance(names["pattern"], str):
        return {names["pattern"]: others}, False
    if told and told <= {"enum", "const"}:
        texts = [re.escape(name) for name in listed(names) if isinstance(name, str)]
        return ({f"^(?:{'|'.join(texts)})$": others} if texts else {}), False
    if told and told <= {"minLength", "maxLength"}:
        return {f"^(?s:.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$": others}, False
    if not told:
        return patterns, others
    raise InputRefusedError("`propertyNames` is only supported with a pattern, values or lengths.")
