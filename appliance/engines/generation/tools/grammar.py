"""The grammars of tool calls, for ``constraints.LarkGrammar``.

Arguments are JSON under the tool's schema, which is narrowed, or refused, where the grammar is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from appliance.engines.generation.constraints.keywords import constraining
from appliance.engines.generation.tools.syntax import (
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
            # Ours alone is trusted: it replaces what the caller's schema says under that name.
            rules.append(f"arguments_{place}: %json {json.dumps(schema | {'x-guidance': _LAYOUT})}")
    return rules


def arguments_schema(tool: Tool) -> dict[str, Any] | None:
    """Return the schema of the arguments of ``tool``, which are an object; None = they are ``{}``."""
    schema = tool.parameters
    if schema is None or _names_no_parameters(schema):
        return None
    return {**schema, "type": "object"}


def _names_no_parameters(schema: dict[str, Any]) -> bool:
    return (
        constraining(schema) <= {"type", "properties", "required", "additionalProperties"}
        and schema.get("properties") == {}
        and not schema.get("required")
        and schema.get("additionalProperties", False) is False
    )


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
