"""What is wrong with a body, field by field, in the words of FastAPI (pydantic 2).

The decoder stops at the first wrong field and has words of its own. So a body that it refused is gone through
once more, along its type, for the whole list that OpenGateLLM's and infinity's clients read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from appliance.api.field_errors import FieldError

MAX_ERRORS = 50
# Of a longer list only so many items are gone through: the rest the decoder has looked at, and it is fast.
CHECKED_ITEMS = 2048
# A value is repeated to the caller when it is no longer than this; of a text, its beginning.
SHOWN_CHARACTERS = 1000
SHOWN_ITEMS = 50
SHOWN_DEPTH = 4

TRUE_WORDS = frozenset({"true", "1", "yes", "on", "t", "y"})
FALSE_WORDS = frozenset({"false", "0", "no", "off", "f", "n"})
# Integers from here on are no floats that pydantic takes for one.
LARGE = 2.0**63

_ZEROS = re.compile(r"(?<=[0-9])\.0+\Z")

# Alternatives in the order in which they were declared; the library sorts them.
_ORDERS: dict[frozenset[Any], tuple[Any, ...]] = {}

_Location = tuple[str | int, ...]


def field_errors(body: bytes, type_: Any) -> list[FieldError]:
    """Return what keeps a JSON body from being a ``type_``, at most MAX_ERRORS entries.

    Nothing when only the decoder can tell (a number beyond any range, say). The body must be JSON.
    """
    try:
        value = msgspec.json.decode(body)
        if value is None:  # FastAPI takes it for no body at all
            return [FieldError(["body"], "Field required", "missing", None)]
        return _first(_check(type_info(type_), value, ("body",)))
    except (msgspec.MsgspecError, RecursionError):
        return []


def value_errors(value: Any, type_: Any, location: Sequence[str | int]) -> list[FieldError]:
    """Return what keeps a decoded value, which stands at ``location``, from being a ``type_``."""
    return _first(_check(type_info(type_), value, tuple(location)))


def listed(words: Sequence[Any]) -> str:
    """Return alternatives as pydantic lists them: ``'a', 'b' or 'c'``."""
    quoted = [repr(word) for word in words]
    return " or ".join(part for part in (", ".join(quoted[:-1]), quoted[-1]) if part)


def shown_input(value: Any) -> Any:
    """Return a value as an error may repeat it; UNSET when it is too large."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
    if isinstance(value, int | float | bool | None):
        return value
    return value if isinstance(value, dict | list) and _is_small(value) else msgspec.UNSET


@lru_cache(maxsize=256)
def type_info(type_: Any) -> inspect.Type:
    """Return what a type consists of."""
    _note_orders(type_, set())
    return inspect.type_info(type_)


def _note_orders(hint: Any, seen: set[Any]) -> None:
    """Note the order of all alternatives in a type: clients compare the text that lists them."""
    if get_origin(hint) is Literal:
        _ORDERS[frozenset(get_args(hint))] = get_args(hint)
    elif isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in seen:
        seen.add(hint)
        for each in get_type_hints(hint, include_extras=True).values():
            _note_orders(each, seen)
    for each in get_args(hint):
        _note_orders(each, seen)


def _first(errors: Iterator[FieldError]) -> list[FieldError]:
    return list(islice(errors, MAX_ERRORS))


def _is_small(value: Any) -> bool:
    """Tell whether a container has few items, all short, without looking at more than that."""
    level, items = [value], 0
    for _ in range(SHOWN_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict | list):
                items += len(each)
                if items > SHOWN_ITEMS:
                    return False
                inner += [*each.keys(), *each.values()] if isinstance(each, dict) else each
            elif isinstance(each, str) and len(each) > SHOWN_CHARACTERS:
                return False
        level = inner
    return not level


def _check(kind: inspect.Type, value: Any, at: _Location) -> Iterator[FieldError]:
    """Yield what keeps ``value`` from being of ``kind``."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from _check(inner, value, at)
        case inspect.UnionType(types=types):
            yield from _union(types, value, at)
        case inspect.StructType():
            yield from _struct(kind, value, at)
        case inspect.DictType():
            if not isinstance(value, dict):
                yield _error(at, "Input should be a valid dictionary", "dict_type", value)
                return
            for key, item in islice(value.items(), CHECKED_ITEMS):
                yield from _check(kind.value_type, item, (*at, key))
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            yield from _list(kind, value, at)
        case _:
            yield from _check_scalar(kind, value, at)


def _check_scalar(kind: inspect.Type, value: Any, at: _Location) -> Iterator[FieldError]:
    match kind:
        case inspect.LiteralType(values=words):
            if value not in words:
                yield _no_choice(words, value, at)
        case inspect.StrType():
            yield from _text(kind, value, at)
        case inspect.BoolType():
            yield from _boolean(value, at)
        case inspect.IntType():
            yield from _integer(kind, value, at)
        case inspect.FloatType():
            yield from _number(kind, value, at)
        case inspect.NoneType():
            if value is not None:
                yield _error(at, "Input should be None", "none_required", value)


def _union(types: Sequence[inspect.Type], value: Any, at: _Location) -> Iterator[FieldError]:
    kinds = [each for each in types if not isinstance(each, inspect.NoneType)]
    if len(kinds) < len(types) and (value is None or (isinstance(value, str) and value.lower() == "null")):
        return
    if len(kinds) == 1:
        yield from _check(kinds[0], value, at)
        return
    tagged = [each for each in kinds if isinstance(each, inspect.StructType) and each.tag_field]
    if tagged and isinstance(value, dict):
        field = str(tagged[0].tag_field)
        chosen = next((each for each in tagged if each.tag == value.get(field)), None)
        if chosen is not None:
            yield from _check(chosen, value, at)
        elif field not in value:
            yield _error((*at, field), "Field required", "missing", value)
        else:
            yield _no_choice([each.tag for each in tagged], value[field], (*at, field))
        return
    found: list[FieldError] = []
    for each in kinds:
        errors = list(_check(each, value, (*at, _name(each))))
        if not errors:
            return
        found += errors
    yield from found


def _struct(kind: inspect.StructType, value: Any, at: _Location) -> Iterator[FieldError]:
    if not isinstance(value, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        yield _error(at, message, "model_attributes_type", value)
        return
    for field in kind.fields:
        name = field.encode_name
        if name in value:
            yield from _check(field.type, value[name], (*at, name))
        elif field.required:
            yield _error((*at, name), "Field required", "missing", value)


def _list(kind: Any, value: Any, at: _Location) -> Iterator[FieldError]:
    if not isinstance(value, list):
        yield _error(at, "Input should be a valid list", "list_type", value)
        return
    if kind.min_length is not None and len(value) < kind.min_length:
        yield list_length_error(at, value, least=kind.min_length)
    elif kind.max_length is not None and len(value) > kind.max_length:
        yield list_length_error(at, value, most=kind.max_length)
    else:
        for place, item in enumerate(value[:CHECKED_ITEMS]):
            yield from _check(kind.item_type, item, (*at, place))


def list_length_error(
    at: Sequence[str | int], value: Sequence[Any], *, least: int | None = None, most: int | None = None
) -> FieldError:
    """Return the entry of a list with fewer than ``least`` items, or more than ``most``."""
    bound, word = (most, "most") if least is None else (least, "least")
    message = f"List should have at {word} {bound} item{'' if bound == 1 else 's'} after validation, not {len(value)}"
    length = "max_length" if least is None else "min_length"
    ctx = {"field_type": "List", length: bound, "actual_length": len(value)}
    return _error(at, message, "too_long" if least is None else "too_short", value, ctx)


def _text(kind: inspect.StrType, value: Any, at: _Location) -> Iterator[FieldError]:
    if not isinstance(value, str):
        yield _error(at, "Input should be a valid string", "string_type", value)
    elif kind.min_length is not None and len(value) < kind.min_length:
        yield text_length_error(at, value, least=kind.min_length)
    elif kind.max_length is not None and len(value) > kind.max_length:
        yield text_length_error(at, value, most=kind.max_length)


def text_length_error(
    at: Sequence[str | int], value: str, *, least: int | None = None, most: int | None = None
) -> FieldError:
    """Return the entry of a text that is shorter than ``least`` characters, or longer than ``most``."""
    bound, word = (most, "most") if least is None else (least, "least")
    message = f"String should have at {word} {bound} character{'' if bound == 1 else 's'}"
    if least is None:
        return _error(at, message, "string_too_long", value, {"max_length": bound})
    return _error(at, message, "string_too_short", value, {"min_length": bound})


def _boolean(value: Any, at: _Location) -> Iterator[FieldError]:
    if isinstance(value, bool) or value in (0, 1):
        return
    if isinstance(value, str):
        if value.lower() not in TRUE_WORDS | FALSE_WORDS:
            yield bool_parsing_error(at, value)
    elif isinstance(value, int | float):
        yield bool_parsing_error(at, value)
    else:
        yield _error(at, "Input should be a valid boolean", "bool_type", value)


def bool_parsing_error(at: Sequence[str | int], value: Any) -> FieldError:
    """Return the entry of a text or number that is neither true nor false."""
    return _error(at, "Input should be a valid boolean, unable to interpret input", "bool_parsing", value)


def _integer(kind: inspect.IntType, value: Any, at: _Location) -> Iterator[FieldError]:
    number: int
    if isinstance(value, str):
        try:
            number = parsed_int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            yield _error(at, message, "int_parsing", value)
            return
    elif isinstance(value, float):
        if not value.is_integer():
            message = "Input should be a valid integer, got a number with a fractional part"
            yield _error(at, message, "int_from_float", value)
            return
        if abs(value) >= LARGE:
            message = "Unable to parse input string as an integer, exceeded maximum size"
            yield _error(at, message, "int_parsing_size", value)
            return
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        yield _error(at, "Input should be a valid integer", "int_type", value)
        return
    yield from _bounds(kind, number, value, at)


def parsed_int(text: str) -> int:
    """Return the integer that a text is, also with zeros behind the point.

    Raises ValueError for anything else (digits of other scripts too), and beyond SHOWN_CHARACTERS: reading digits
    takes the square of their count.
    """
    if len(text) > SHOWN_CHARACTERS:
        raise ValueError(f"no number has more than {SHOWN_CHARACTERS} characters here")
    return int(_ZEROS.sub("", _plain_digits(text)))


def parsed_float(text: str) -> float:
    """Return the number that a text is. Raises ValueError for anything else, digits of other scripts too."""
    return float(_plain_digits(text))


def _plain_digits(text: str) -> str:
    if not text.strip().isascii():
        raise ValueError("numbers have ASCII digits")
    return text


def _number(kind: inspect.FloatType, value: Any, at: _Location) -> Iterator[FieldError]:
    if isinstance(value, str):
        try:
            number = parsed_float(value)
        except ValueError:
            message = "Input should be a valid number, unable to parse string as a number"
            yield _error(at, message, "float_parsing", value)
            return
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        yield _error(at, "Input should be a valid number", "float_type", value)
        return
    yield from _bounds(kind, number, value, at)


def _bounds(
    kind: inspect.IntType | inspect.FloatType, number: float, value: Any, at: _Location
) -> Iterator[FieldError]:
    for code, bound, words, kept in (
        ("greater_than", kind.gt, "greater than", kind.gt is None or number > kind.gt),
        ("greater_than_equal", kind.ge, "greater than or equal to", kind.ge is None or number >= kind.ge),
        ("less_than", kind.lt, "less than", kind.lt is None or number < kind.lt),
        ("less_than_equal", kind.le, "less than or equal to", kind.le is None or number <= kind.le),
    ):
        if not kept and bound is not None:
            shown = int(bound) if float(bound).is_integer() else bound
            name = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt"}.get(code, "le")
            yield _error(at, f"Input should be {words} {shown}", code, value, {name: shown})
            return


def _no_choice(words: Sequence[Any], value: Any, at: _Location) -> FieldError:
    code = "enum" if len(words) > 1 else "literal_error"
    expected = listed(_ORDERS.get(frozenset(words), words))
    return _error(at, f"Input should be {expected}", code, value, {"expected": expected})


def _error(
    at: Sequence[str | int], message: str, code: str, value: Any, ctx: dict[str, Any] | None = None
) -> FieldError:
    # Names of fields are the client's own where it may choose them.
    location = [part if isinstance(part, int) else str(shown_input(part)) for part in at]
    return FieldError(location, message, code, shown_input(value), msgspec.UNSET if ctx is None else ctx)


def _name(kind: inspect.Type) -> str:
    """Return how pydantic names one of several types in a location."""
    match kind:
        case inspect.Metadata(type=inner):
            return _name(inner)
        case inspect.StrType():
            return "str"
        case inspect.IntType():
            return "int"
        case inspect.FloatType():
            return "float"
        case inspect.BoolType():
            return "bool"
        case inspect.ListType(item_type=item):
            return f"list[{_name(item)}]"
        case inspect.DictType(key_type=key, value_type=item):
            return f"dict[{_name(key)},{_name(item)}]"
        case inspect.StructType(cls=cls):
            return cls.__name__
        case inspect.LiteralType(values=words):
            return f"literal[{','.join(map(repr, words))}]"
        case _:
            return "any"
