"""Booleans and numbers in the forms that FastAPI (pydantic 2) takes and the decoder does not: "yes", " 5 ", ".5"."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

from appliance.api.validation import FALSE_WORDS, TRUE_WORDS, parsed_float, parsed_int, type_info


def lenient(value: Any, type_: Any) -> Any:
    """Return a decoded value with the booleans and numbers that ``type_`` has there; what is none stays as it is.

    Of several alternatives beside null none is preferred: there values stay as they are too.
    """
    return _lenient(type_info(type_), value)


def _lenient(kind: inspect.Type, value: Any) -> Any:
    match kind:
        case inspect.Metadata(type=inner):
            return _lenient(inner, value)
        case inspect.UnionType(types=types):
            kinds = [each for each in types if not isinstance(each, inspect.NoneType)]
            return _lenient(kinds[0], value) if len(kinds) == 1 else value
        case inspect.StructType(fields=fields) if isinstance(value, dict):
            known = {field.encode_name: field.type for field in fields}
            return {
                name: _lenient(known[name], item) if name in known else item for name, item in value.items()
            }
        case inspect.DictType(value_type=inner) if isinstance(value, dict):
            return {key: _lenient(inner, item) for key, item in value.items()}
        case inspect.ListType(item_type=inner) if isinstance(value, list):
            return [_lenient(inner, item) for item in value]
        case _:
            return _scalar(kind, value)


def _scalar(kind: inspect.Type, value: Any) -> Any:
    try:
        match kind, value:
            case inspect.BoolType(), str():
                word = value.lower()
                return True if word in TRUE_WORDS else False if word in FALSE_WORDS else value
            case inspect.BoolType(), float() if value in (0.0, 1.0):
                return bool(value)
            case inspect.IntType(), str():
                return parsed_int(value)
            case inspect.FloatType(), str():
                return parsed_float(value)
    except ValueError:
        return value
    return value
