"""The values that ``enum`` and ``const`` list: which are wanted, and which can be written."""

from __future__ import annotations

import json
from typing import Any

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.keywords import type_names
from appliance.engines.generation.constraints.numbers import LARGEST_INTEGER, allows
from appliance.engines.generation.constraints.regex import UNQUOTABLE

MAX_DEPTH = 32


def listed(node: dict[str, Any]) -> list[Any]:
    """Return the values of the checked schema ``node`` that its enum, const, types, bounds and lengths allow.

    Raises InputRefusedError when ``enum`` is no array or a value cannot be written in JSON by us.
    """
    values = node.get("enum", [])
    if not isinstance(values, list):
        raise InputRefusedError("`enum` must be an array.")
    if "const" in node:
        key = identity(node["const"])
        found = "enum" not in node or any(identity(value) == key for value in values)
        values = [node["const"]] if found else []
    distinct = {identity(value): value for value in values}
    return [_writable(value, 0) for value in distinct.values() if _allowed(node, value)]


def identity(value: Any) -> str:
    """Return a text that two values share if JSON schema takes them for equal (1 and 1.0, but not true)."""
    try:
        return json.dumps(_number_forms(value, 0), sort_keys=True)
    except ValueError:
        raise InputRefusedError("A listed number has too many digits.") from None


def kind(value: Any) -> str:
    """Return the type of a JSON value; integers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def weight(value: Any) -> int:
    """Return how many parts a JSON value has, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(weight, value.values()))
    return 1 + sum(map(weight, value)) if isinstance(value, list) else 1


def check_text(text: str) -> None:
    """Raise InputRefusedError when ``text`` cannot be written in a JSON string without \\u escapes."""
    if not UNQUOTABLE.isdisjoint(text):
        raise InputRefusedError("Texts with control characters are not supported.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputRefusedError("A text holds half a surrogate pair.") from None


def _allowed(node: dict[str, Any], value: Any) -> bool:
    names = type_names(node)
    of = kind(value)
    if names is not None and of not in names:
        integral = of == "number" and (isinstance(value, int) or value.is_integer())
        if not (integral and "integer" in names):
            return False
    if of == "number":
        return allows(node, value)
    if of == "string":
        least, most = node.get("minLength", 0), node.get("maxLength", len(value))
        return bool(least <= len(value) <= most)
    return True


def _writable(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InputRefusedError("A listed value is nested too deeply.")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, list):
        return [_writable(each, depth + 1) for each in value]
    elif isinstance(value, dict):
        for name in value:
            check_text(name)
        return {name: _writable(each, depth + 1) for name, each in value.items()}
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > LARGEST_INTEGER:
            raise InputRefusedError(f"Listed numbers beyond {LARGEST_INTEGER} are not supported.")
        return int(value) if value == int(value) else value
    return value


def _number_forms(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InputRefusedError("A listed value is nested too deeply.")
    if isinstance(value, list):
        return [_number_forms(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {name: _number_forms(each, depth + 1) for name, each in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
