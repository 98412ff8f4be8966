"""The fields of tools in a chat request, and the calls of an answer (§12 of the contract).

The legacy ``functions`` and ``function_call`` mean one tool call in the older shape.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from appliance.api.dialect import Dialect
from appliance.engines.generation.tools.call_parser import ToolCallParser
from appliance.engines.generation.tools.events import Arguments, CallBegin, Content, ToolEvent
from appliance.engines.generation.tools.formats import ToolFormat
from appliance.engines.generation.tools.grammar import Special
from appliance.engines.generation.tools.syntax import Tool
from appliance.errors import InvalidRequestError

MAX_TOOLS = 128
# All tools together, as JSON. They must fit the context beside the messages anyway.
MAX_TOOLS_BYTES = 1 << 18
MAX_DEPTH = 48

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")

Mode = Literal["none", "auto", "required", "named"]


class ToolFields(Protocol):
    """The fields of a chat request that are read here."""

    model: str
    tools: list[dict[str, Any]] | None
    tool_choice: Any
    parallel_tool_calls: bool | msgspec.UnsetType | None
    functions: list[dict[str, Any]] | None
    function_call: Any


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants of tools.

    ``offered`` are those that the template shows to the model, None in mode "none". ``tools`` are
    those that may be called; in mode "named" the one that must be. ``legacy`` = the answer has
    ``function_call`` instead of ``tool_calls``.
    """

    mode: Mode = "none"
    offered: list[dict[str, Any]] | None = None
    tools: tuple[Tool, ...] = ()
    parallel: bool = False
    legacy: bool = False

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call, so that a grammar forces one."""
        return self.mode in ("required", "named")

    def grammar(self, format_: ToolFormat, special: Special) -> str | None:
        """Return the Lark text that the answer is held to, or None when it is free.

        Its schemas are the caller's: compiling it may refuse them.
        """
        if self.mode == "none":
            return None
        write = format_.grammar if self.forced else format_.free_grammar
        return write(self.tools, parallel=self.parallel, special=special)

    def turn(self, format_: ToolFormat) -> ToolTurn | None:
        """Return the reader of a new choice, or None when all of it is text."""
        if self.mode == "none":
            return None
        return ToolTurn(format_.parser(self.tools, parallel=self.parallel, forced=self.forced), self)

    def silent_content(self, dialect: Dialect) -> str | None:
        """Return the ``content`` of a message that calls and says nothing."""
        return dialect.named_tool_content if self.mode == "named" else None

    def finish_reason(self, reason: str, *, called: bool) -> str:
        """Return why the answer ended, as the API names it."""
        if not called or reason == "length":
            return reason
        if self.legacy:
            return "function_call"
        return "stop" if self.mode == "named" else "tool_calls"


class ToolTurn:
    """Reads one choice; its deltas are those of a stream, with ``content``, ``tool_calls`` or ``function_call``."""

    def __init__(self, parser: ToolCallParser, use: ToolUse) -> None:
        self._parser = parser
        self._use = use
        self._called = False

    def push(self, text: str) -> list[dict[str, Any]]:
        """Take the next piece of text; return the deltas that are certain now."""
        return self._deltas(self._parser.push(text))

    def end(self, finish_reason: str) -> tuple[list[dict[str, Any]], str]:
        """Return the last deltas, and the reason for the end as the API names it."""
        deltas = self._deltas(self._parser.flush(cut=finish_reason == "length"))
        return deltas, self._use.finish_reason(finish_reason, called=self._called)

    def _deltas(self, events: Sequence[ToolEvent]) -> list[dict[str, Any]]:
        self._called = self._called or any(isinstance(event, CallBegin) for event in events)
        shaped = (delta_of(event, legacy=self._use.legacy) for event in events)
        return [delta for delta in shaped if delta is not None]


def delta_of(event: ToolEvent, *, legacy: bool) -> dict[str, Any] | None:
    """Return what a stream says of ``event``: id and name once, then arguments; nothing at a call's end."""
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, CallBegin):
        function = {"name": event.name, "arguments": ""}
        if legacy:
            return {"function_call": function}
        head = {"index": event.index, "id": f"chatcmpl-tool-{uuid.uuid4().hex}", "type": "function"}
        return {"tool_calls": [{**head, "function": function}]}
    if isinstance(event, Arguments):
        piece = {"arguments": event.piece}
        if legacy:
            return {"function_call": piece}
        return {"tool_calls": [{"index": event.index, "function": piece}]}
    return None


def tool_use(body: ToolFields, dialect: Dialect, *, has_format: bool) -> ToolUse:
    """Return what ``body`` wants of tools; ``has_format`` = the model's pack has a tool format.

    Raises InvalidRequestError with the contract's texts, and with code ``unsupported_parameter``
    when tools are wanted of a model that has no form for them.
    """
    legacy = body.functions is not None or body.function_call is not None
    parallel = body.parallel_tool_calls
    if parallel is msgspec.UNSET:
        parallel = dialect.parallel_tool_calls
    if legacy and (body.tools is not None or body.tool_choice is not None):
        raise InvalidRequestError(
            "`functions` and `function_call` cannot be used together with `tools` and `tool_choice`.",
            param="functions",
        )
    words = _FUNCTION_WORDS if legacy else _TOOL_WORDS
    given = _listed(body, words)
    tools = [_tool(each, path) for each, path in given]
    names = [tool.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InvalidRequestError(f"`{words.tools}` has two functions named '{name}'.", param=words.tools)
    choice = body.function_call if legacy else body.tool_choice
    mode, named = _mode(choice, names, dialect, words)
    if mode == "none":
        return ToolUse()
    if not has_format:
        raise InvalidRequestError(
            f"The model `{body.model}` does not support tools.",
            param=words.tools,
            code="unsupported_parameter",
        )
    return ToolUse(
        mode=mode,
        offered=[_offered(tool) for tool in tools],
        tools=tuple(tool for tool in tools if mode != "named" or tool.name == named),
        parallel=not legacy and mode != "named" and parallel is not False,
        legacy=legacy,
    )


class _Words(msgspec.Struct, frozen=True):
    """The names of the two fields, and what is said of a wrong choice."""

    tools: str
    choice: str
    strings: tuple[str, ...]
    wrong_string: str
    malformed: str
    unknown: str


_TOOL_WORDS = _Words(
    "tools",
    "tool_choice",
    ("auto", "required"),
    '`tool_choice` must either be a named tool, "auto", or "none".',
    "Incorrectly formatted `tool_choice`. Should be like "
    '`{"type": "function", "function": {"name": "my_function"}}`',
    "The tool specified in `tool_choice` does not match any of the specified `tools`",
)
_FUNCTION_WORDS = _Words(
    "functions",
    "function_call",
    ("auto",),
    '`function_call` must either be a named function, "auto", or "none".',
    'Incorrectly formatted `function_call`. Should be like `{"name": "my_function"}`',
    "The function specified in `function_call` does not match any of the specified `functions`",
)


def _mode(choice: Any, names: list[str], dialect: Dialect, words: _Words) -> tuple[Mode, str | None]:
    """Return the mode and the name of the tool that must be called, if it is one."""
    if choice is None:
        return (dialect.default_tool_choice if names else "none"), None
    if choice == "none":
        return "none", None
    mode: Mode
    if isinstance(choice, str):
        if dialect.named_tools_only:
            raise InvalidRequestError("Currently only named tools are supported.", param=words.choice)
        bare = dialect.bare_tool_names and choice in names
        if choice not in words.strings and not bare:
            raise InvalidRequestError(words.wrong_string, param=words.choice)
        if choice in words.strings:
            mode, name = ("required" if choice == "required" else "auto"), None
        else:
            mode, name = "named", choice
    else:
        mode, name = "named", _chosen_name(choice, words)
    if not names:
        raise InvalidRequestError(
            f"When using `{words.choice}`, `{words.tools}` must be set.", param=words.choice
        )
    if name is not None and name not in names:
        raise InvalidRequestError(words.unknown, param=words.choice)
    return mode, name


def _chosen_name(choice: Any, words: _Words) -> str:
    if words is _TOOL_WORDS and isinstance(choice, dict):
        choice = choice.get("function") if choice.get("type", "function") == "function" else None
    name = choice.get("name") if isinstance(choice, dict) else None
    if not isinstance(name, str):
        raise InvalidRequestError(words.malformed, param=words.choice)
    return name


def _listed(body: ToolFields, words: _Words) -> list[tuple[Any, str]]:
    """Return the functions with their paths in the request, after bounding their number and size."""
    entries = (body.functions if words is _FUNCTION_WORDS else body.tools) or []
    if len(entries) > MAX_TOOLS:
        raise InvalidRequestError(
            f"`{words.tools}` may hold at most {MAX_TOOLS} functions, got {len(entries)}.", param=words.tools
        )
    if _deeper_than(entries, MAX_DEPTH):
        raise InvalidRequestError(f"`{words.tools}` is nested too deeply.", param=words.tools)
    if len(msgspec.json.encode(entries)) > MAX_TOOLS_BYTES:
        raise InvalidRequestError(
            f"`{words.tools}` may be at most {MAX_TOOLS_BYTES} bytes of JSON.", param=words.tools
        )
    if words is _FUNCTION_WORDS:
        return [(entry, f"functions[{place}]") for place, entry in enumerate(entries)]
    listed: list[tuple[Any, str]] = []
    for place, entry in enumerate(entries):
        kind = entry.get("type", "function")
        if kind != "function":
            raise InvalidRequestError(
                f"tools[{place}].type: only tools of type 'function' are supported, got {kind!r}.",
                param=f"tools[{place}].type",
            )
        listed.append((entry.get("function"), f"tools[{place}].function"))
    return listed


def _tool(given: Any, path: str) -> Tool:
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{path} must be an object.", param=path)
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidRequestError(
            f"{path}.name must be 1 to 64 letters, digits, underscores, dashes or dots.", param=f"{path}.name"
        )
    parameters = _typed(given, path, "parameters", dict, "an object")
    if parameters is not None:
        kind = parameters.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise InvalidRequestError(
                f"{path}.parameters must be a JSON schema of type 'object'.", param=f"{path}.parameters"
            )
    return Tool(
        name=name,
        description=_typed(given, path, "description", str, "a string"),
        parameters=parameters,
        strict=bool(_typed(given, path, "strict", bool, "a boolean")),
    )


def _typed(given: dict[str, Any], path: str, name: str, type_: type, described: str) -> Any:
    value = given.get(name)
    if value is not None and not isinstance(value, type_):
        raise InvalidRequestError(f"{path}.{name} must be {described}.", param=f"{path}.{name}")
    return value


def _offered(tool: Tool) -> dict[str, Any]:
    """Return a tool as templates want it: with parameters, also where it takes none."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = (
        {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    )
    return {"type": "function", "function": function}


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
