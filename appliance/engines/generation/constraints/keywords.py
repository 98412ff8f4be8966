"""The keywords of JSON schemas: which are enforced, which are refused, and of what type their values are."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.numbers import KEYWORDS as NUMBER_KEYWORDS

# "integer" is a kind of "number".
TYPES = ("null", "boolean", "number", "string", "array", "object")

# A longer text or list than this fits no context; limits above it are no limits.
LARGEST_COUNT = 1_000_000
# Of a bound; Python takes its time to write longer numbers, or refuses.
LARGEST_BITS = 1024

LEAST = ("minLength", "minItems", "minProperties")
MOST = ("maxLength", "maxItems", "maxProperties")
APPLICATORS = frozenset({"$ref", "allOf", "anyOf", "oneOf", "enum", "const"})
STRING_KEYWORDS = frozenset({"minLength", "maxLength", "pattern", "format"})
ARRAY_KEYWORDS = frozenset(
    {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"}
)
OBJECT_KEYWORDS = frozenset(
    {
        *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties"),
        *("propertyNames", "required", "minProperties", "maxProperties"),
    }
)
ASSERTIONS = frozenset({"type", *NUMBER_KEYWORDS, *STRING_KEYWORDS, *ARRAY_KEYWORDS, *OBJECT_KEYWORDS})

# Keywords of some draft that no constraint can be made of, by the type that they are about.
_REFUSED = {
    "array": ("contains",),
    "object": ("dependencies", "dependentRequired", "dependentSchemas"),
    "": ("not", "if", "$dynamicRef", "$recursiveRef"),
}


def constraining(node: dict[str, Any]) -> set[str]:
    """Return the keywords of ``node`` that constrain; the others are annotations, as are unknown ones."""
    return node.keys() & (APPLICATORS | ASSERTIONS)


def checked(node: dict[str, Any]) -> dict[str, Any]:
    """Return ``node`` with its simple keywords in one form: bounds as numbers, counts as integers.

    Raises InputRefusedError for values of the wrong type and for keywords that are not supported.
    """
    if "x-guidance" in node:
        raise InputRefusedError("`x-guidance` is not a keyword of JSON schemas.")
    types = type_names(node)
    for about, keywords in _REFUSED.items():
        for keyword in keywords:
            if keyword in node and (not about or types is None or about in types):
                if keyword == "if" and not {"then", "else"} & node.keys():
                    continue
                raise InputRefusedError(f"`{keyword}` is not supported.")
    node = dict(node)
    if types is not None:
        node["type"] = types
    for keyword in NUMBER_KEYWORDS:
        if keyword in node:
            _check_number(node, keyword)
    for keyword in (*LEAST, *MOST):
        if keyword in node:
            node[keyword] = _count(node[keyword], keyword)
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        # Draft 3 had a boolean here.
        raise InputRefusedError("`required` must be an array of strings.")
    return node


def type_names(node: dict[str, Any]) -> list[str] | None:
    """Return the names in ``type``, or None without it. Raises InputRefusedError when they are no types."""
    if "type" not in node:
        return None
    names = node["type"] if isinstance(node["type"], list) else [node["type"]]
    if not names or not all(isinstance(name, str) and name in (*TYPES, "integer") for name in names):
        raise InputRefusedError(f"`type` must be one of {', '.join(TYPES)} and integer, or several of them.")
    return [name for name in dict.fromkeys(names) if name != "integer" or "number" not in names]


def both(one: dict[str, Any], other: dict[str, Any], keyword: str) -> Any:
    """Return the value of ``keyword`` under which the values of two checked schemas are both satisfied.

    For ``type`` it may be []. The keyword must be one of MERGED and be in one of the schemas at least.
    """
    if keyword not in one or keyword not in other:
        return one[keyword] if keyword in one else other[keyword]
    if keyword == "type":
        return _common_types(type_names(one) or [], type_names(other) or [])
    return _MERGES[keyword](one[keyword], other[keyword])


def _common_types(names: list[str], others: list[str]) -> list[str]:
    common = [name for name in names if name in others]
    if ("integer" in names and "number" in others) or ("number" in names and "integer" in others):
        common.append("integer")
    return common


def _common_multiple(one: float, other: float) -> float:
    a, b = Fraction(repr(one)), Fraction(repr(other))
    multiple = Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator))
    return multiple.numerator if multiple.denominator == 1 else float(multiple)


_MERGES: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", *LEAST), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", *MOST), min),
    "multipleOf": _common_multiple,
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
}
# Keywords that mean the same wherever in an ``allOf`` they stand.
MERGED = ("type", *_MERGES)


def _check_number(node: dict[str, Any], keyword: str) -> None:
    value = node[keyword]
    if isinstance(value, bool) and keyword.startswith("exclusive"):
        # Draft 4: it says of the plain bound that it is exclusive.
        plain = "minimum" if keyword == "exclusiveMinimum" else "maximum"
        del node[keyword]
        if value and plain in node:
            node[keyword] = node.pop(plain)
            _check_number(node, keyword)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise InputRefusedError(f"`{keyword}` must be a number.")
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise InputRefusedError(f"`{keyword}` has too many digits.")
    if keyword == "multipleOf" and value <= 0:
        raise InputRefusedError("`multipleOf` must be above 0.")


def _count(value: Any, keyword: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise InputRefusedError(f"`{keyword}` must be an integer from 0.")
    if value > LARGEST_COUNT and keyword in LEAST:
        raise InputRefusedError(f"`{keyword}` may be at most {LARGEST_COUNT}.")
    return min(int(value), LARGEST_COUNT)
