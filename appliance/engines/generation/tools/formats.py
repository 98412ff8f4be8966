"""The forms in which models call tools. Which one a model was taught is a property of its pack."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.engines.generation.tools.call_parser import ToolCallParser
from appliance.engines.generation.tools.grammar import Special, forced_grammar, free_grammar
from appliance.engines.generation.tools.syntax import CallSyntax, Tool


class ToolFormat(msgspec.Struct, frozen=True):
    """One form of tool calls: its grammars and its parser. ``name`` is the manifest's ``tool_format``."""

    name: str
    syntax: CallSyntax

    def grammar(self, tools: Sequence[Tool], *, parallel: bool, special: Special) -> str:
        """Return the Lark text of an answer that calls one of ``tools``, or several times when ``parallel``.

        ``special`` tells the id of a text that is a single added token of the vocabulary.
        """
        return forced_grammar(self.syntax, tools, parallel=parallel, special=special)

    def free_grammar(self, tools: Sequence[Tool], *, parallel: bool, special: Special) -> str | None:
        """Return the Lark text of an answer that may call, when some tool is ``strict``; else None."""
        return free_grammar(self.syntax, tools, parallel=parallel, special=special)

    def parser(self, tools: Sequence[Tool], *, parallel: bool, forced: bool) -> ToolCallParser:
        """Return the parser of one new answer; ``forced`` = it was generated under ``grammar``."""
        names = [tool.name for tool in tools]
        return ToolCallParser(self.syntax, names, parallel=parallel, forced=forced)


HERMES = ToolFormat(
    "hermes",
    CallSyntax(
        opening="<tool_call>",
        closing="</tool_call>",
        marked=True,
        arguments="arguments",
        padding="\n",
        separator="\n",
    ),
)
LLAMA3_JSON = ToolFormat(
    "llama3-json",
    CallSyntax(
        opening="<|python_tag|>",
        closing="",
        marked=False,
        arguments="parameters",
        padding="",
        separator="; ",
    ),
)
_FORMATS = {each.name: each for each in (HERMES, LLAMA3_JSON)}


def tool_format(name: str) -> ToolFormat | None:
    """Return the format that a manifest names; None for "none"."""
    return _FORMATS.get(name)
