"""Regular expressions of requests, written anew in the dialect of the constraint engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.regex_syntax import (
    JSON_SPACES,
    Characters,
    Either,
    End,
    Node,
    Repeat,
    Series,
    Start,
    letter,
    parse,
)

# What a JSON string can only hold as \uXXXX, which the constraint engine is not let to write.
UNQUOTABLE = frozenset(map(chr, [*range(8), 0x0B, *range(0x0E, 0x20), 0x7F]))

_ANYTHING = Characters("(?s:.*)")

# What lies beside a part of a pattern: another part, the end of the text, or anything.
Edge = Literal["inner", "bound", "open"]


def literal(text: str) -> str:
    """Return the expression of ``text`` itself."""
    return "".join(map(letter, text))


def whole(pattern: str) -> str:
    """Return the expression of the texts that ``pattern`` matches from end to end.

    Raises InputRefusedError for what is no regular expression, not supported, or too large.
    """
    return _written(_unanchored(parse(pattern), "bound", "bound"))


def within_json(pattern: str) -> str:
    """Return the expression of the JSON strings in which ``pattern`` is found somewhere.

    Raises InputRefusedError as ``whole`` does, and for characters that we do not write in JSON.
    """
    parsed = parse(pattern)
    _each_set(parsed, _check_quotable)
    return _written(_unanchored(parsed, "open", "open"))


def json_whitespace(pattern: str) -> str:
    """Return the expression of the whitespace that ``pattern`` matches from end to end.

    Raises InputRefusedError as ``whole`` does, and when it matches what is no whitespace in JSON.
    """
    parsed = parse(pattern, json_spaces=True)
    _each_set(parsed, _check_whitespace)
    return _written(_unanchored(parsed, "bound", "bound"))


def _check_quotable(characters: Characters) -> None:
    if characters.members is not None and characters.members <= UNQUOTABLE:
        raise InputRefusedError("The regular expression asks for control characters, which is not supported.")


def _check_whitespace(characters: Characters) -> None:
    if characters.members is None or not characters.members <= JSON_SPACES:
        raise InputRefusedError(
            "The whitespace pattern may only match spaces, tabs and line ends, which JSON allows between tokens."
        )


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Repeat):
        return (node.part,)
    if isinstance(node, Series):
        return node.parts
    return node.options if isinstance(node, Either) else ()


def _each_set(node: Node, check: Callable[[Characters], None]) -> None:
    if isinstance(node, Characters):
        check(node)
    for part in _parts(node):
        _each_set(part, check)


def _anchored(node: Node) -> bool:
    return isinstance(node, Start | End) or any(map(_anchored, _parts(node)))


def _unanchored(node: Node, left: Edge, right: Edge) -> Node:
    """Return ``node`` without anchors: with anything before and after it where the pattern is open."""
    if not _anchored(node):
        before = (_ANYTHING,) if left == "open" else ()
        after = (_ANYTHING,) if right == "open" else ()
        return Series((*before, node, *after))
    if isinstance(node, Either):
        return Either(tuple(_unanchored(option, left, right) for option in node.options))
    parts = list(node.parts) if isinstance(node, Series) else [node]
    while parts and isinstance(parts[0], Start) and left != "inner":
        left = "bound"
        parts.pop(0)
    while parts and isinstance(parts[-1], End) and right != "inner":
        right = "bound"
        parts.pop()
    if not parts:
        return Series((_ANYTHING,) if "open" in (left, right) else ())
    if len(parts) == 1:
        if isinstance(parts[0], Start | End | Repeat) and _anchored(parts[0]):
            raise InputRefusedError("A regular expression may have ^ and $ only at its start and its end.")
        return _unanchored(parts[0], left, right)
    first, *middle, last = parts
    return Series(
        (
            _unanchored(first, left, "inner"),
            *(_unanchored(part, "inner", "inner") for part in middle),
            _unanchored(last, "inner", right),
        )
    )


def _written(node: Node) -> str:
    match node:
        case Characters():
            return node.written
        case Series():
            return "".join(map(_written, node.parts))
        case Either():
            return f"(?:{'|'.join(map(_written, node.options))})"
        case Repeat():
            part = _written(node.part)
            part = part if isinstance(node.part, Characters) else f"(?:{part})"
            return f"{part}{{{node.least},{'' if node.most is None else node.most}}}"
        case _:
            return ""  # an anchor, of which _unanchored leaves none
