"""The grammars of tool calls, in the Lark dialect of llguidance.

Arguments are JSON under the tool's schema. A schema that the dialect cannot enforce is refused
where the grammar is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from appliance.engines.generation.tool_syntax import (
    ARGUMENT_MEMBERS,
    IGNORED_MEMBERS,
    MAX_CALLS,
    CallSyntax,
    Tool,
)

# The id of a text that is one added token of the vocabulary, or None.
Special = Callable[[str], int | None]

# One space where JSON allows any: how models are taught to write it, and no room to loop in.
_LAYOUT = {"whitespace_pattern": " "}
_ANY_OBJECT = {"type": "object"}
# Keywords beside ``properties`` under which closing an object could refuse what the schema means.
_OPEN_KEYWORDS = frozenset(
    {
        *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "const", "enum"),
        *("patternProperties", "propertyNames", "unevaluatedProperties", "minProperties"),
        *("dependentSchemas", "dependentRequired", "dependencies"),
    }
)
_SPACES = r"[ \t\r\n]*"


def forced_grammar(syntax: CallSyntax, tools: Sequence[Tool], *, parallel: bool, special: Special) -> str:
    """Return the grammar of one call, or of one to MAX_CALLS when ``parallel``, and of nothing else."""
    more = _more(syntax, "call") if parallel else ""
    opening, closing = _markers(syntax, special)
    if syntax.marked:
        head, call = "", f"{opening} object {closing}".rstrip()
    else:
        # Only a marker of its own may precede it: as text it would have to be written in full.
        head, call = (f"({opening})? " if special(syntax.opening) is not None else ""), "object"
    return "\n".join(
        [f"start: {head}call{more}", f"call: {call}", *_objects(syntax, tools, strict_only=False)]
    )


def free_grammar(
    syntax: CallSyntax, tools: Sequence[Tool], *, parallel: bool, special: Special
) -> str | None:
    """Return the grammar of an answer that may call: any text, but calls are of ``tools`` and well-formed.

    Arguments of strict tools are valid under their schemas, those of others are any object. None
    when no tool is strict: then nothing needs to be enforced.
    """
    if not any(tool.strict for tool in tools):
        return None
    opening, closing = _markers(syntax, special)
    objects = _objects(syntax, tools, strict_only=True)
    if syntax.marked:
        marker = _pattern(syntax.opening)
        token = special(syntax.opening)
        # The marker may also be written as the text of ordinary tokens.
        by_token = "" if token is None else f" | TEXT <[{token}]>"
        rules = [
            f"start: call{{0,{MAX_CALLS if parallel else 1}}} TEXT",
            f"call: (head{by_token}) object {closing}".rstrip(),
            f"head[lazy]: /(?s:.*){marker}/",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*{marker}.*)/",
        ]
    else:
        by_token = f"({opening})? " if special(syntax.opening) is not None else ""
        names = " | ".join(_literal(json.dumps(tool.name)) for tool in tools)
        others = "|".join(sorted(ARGUMENT_MEMBERS | IGNORED_MEMBERS))
        rules = [
            f"start: TEXT | {by_token}object{_more(syntax, 'object') if parallel else ''}",
            "TEXT: /(?s:.*)/ & ~CALL & ~OTHER_CALL",
            f'CALL: /{_SPACES}\\{{{_SPACES}"name"{_SPACES}:{_SPACES}/ ({names}) /(?s:.*)/',
            f'OTHER_CALL: /{_SPACES}\\{{{_SPACES}"({others})"(?s:.*)/',
        ]
    return "\n".join([*rules, *objects])


def _objects(syntax: CallSyntax, tools: Sequence[Tool], *, strict_only: bool) -> list[str]:
    """Return the rule ``object`` of the calls' JSON, and those that it needs."""
    rules = ["object: " + " | ".join(f"call_{place}" for place in range(len(tools)))]
    for place, tool in enumerate(tools):
        head = f'{syntax.padding}{{"name": {json.dumps(tool.name)}, "{syntax.arguments}": '
        schema = _ANY_OBJECT if strict_only and not tool.strict else arguments_schema(tool)
        if schema is None:
            rules.append(f"call_{place}: {_literal(head + '{}}' + syntax.padding)}")
        else:
            rules.append(f"call_{place}: {_literal(head)} arguments_{place} {_literal('}' + syntax.padding)}")
            rules.append(f"arguments_{place}: %json {json.dumps(schema | {'x-guidance': _LAYOUT})}")
    return rules


def arguments_schema(tool: Tool) -> dict[str, Any] | None:
    """Return the schema that the arguments of ``tool`` are held to; None = they are ``{}``.

    It admits objects only, and no members beside those that the tool names where its schema merely
    does not forbid them: a function is called with its own parameters.
    """
    if tool.parameters is None:
        return None
    schema = _closed(tool.parameters)
    if schema.get("properties") == {} and schema.get("additionalProperties") is False:
        return None
    return {**schema, "type": "object"}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return ``schema`` with its plain objects closed."""
    if _OPEN_KEYWORDS & schema.keys():
        return schema
    properties, items = schema.get("properties"), schema.get("items")
    closed = dict(schema)
    if isinstance(items, dict):
        closed["items"] = _closed(items)
    if isinstance(properties, dict):
        closed["properties"] = {
            name: _closed(value) if isinstance(value, dict) else value for name, value in properties.items()
        }
        required = schema.get("required", [])
        if isinstance(required, list) and all(name in [*properties] for name in required):
            closed.setdefault("additionalProperties", False)
    return closed


def _more(syntax: CallSyntax, rule: str) -> str:
    return f" ({_literal(syntax.separator)} {rule}){{0,{MAX_CALLS - 1}}}"


def _markers(syntax: CallSyntax, special: Special) -> tuple[str, str]:
    return _marker(syntax.opening, special), _marker(syntax.closing, special)


def _marker(text: str, special: Special) -> str:
    token = special(text) if text else None
    if token is not None:
        return f"<[{token}]>"
    return _literal(text) if text else ""


def _literal(text: str) -> str:
    # Inside quotes the dialect reads JSON's escapes.
    return json.dumps(text)


def _pattern(text: str) -> str:
    """Return a regular expression of ``text`` for use between slashes."""
    return "".join(each if each.isalnum() or each in "_<> " else f"\\x{{{ord(each):x}}}" for each in text)
