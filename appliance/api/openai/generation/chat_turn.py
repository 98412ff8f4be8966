"""What an answer's text says, as deltas of the assistant's message: text, or calls of tools."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Turn(Protocol):
    """Reads one choice. A delta holds ``content``, ``tool_calls`` or ``function_call``, as streams show them."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """Take the next piece of text; return the deltas that are certain now."""
        ...

    def end(self, finish_reason: str) -> tuple[list[dict[str, Any]], str]:
        """Return the last deltas, and the reason for the end as the API names it."""
        ...


class TextTurn:
    """A choice whose text is its content."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """Return the text as content."""
        return [{"content": text}] if text else []

    def end(self, finish_reason: str) -> tuple[list[dict[str, Any]], str]:
        """Return the reason as it is: nothing was held back."""
        return [], finish_reason


class AssistantMessage(msgspec.Struct, kw_only=True):
    """The answer of one choice."""

    role: str
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] = []
    reasoning_content: msgspec.UnsetType | None = None


def assistant_message(
    deltas: list[dict[str, Any]], *, role: str, prefix: str, silent: str | None
) -> AssistantMessage:
    """Join a whole choice's deltas as a client of the stream would.

    ``prefix`` stands before the text; ``silent`` is the content of a choice that calls and says nothing.
    """
    text = [prefix]
    calls: list[dict[str, Any]] = []
    function: dict[str, Any] | None = None
    for delta in deltas:
        text.append(delta.get("content") or "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                calls.append({key: value for key, value in call.items() if key != "index"})
            else:
                calls[call["index"]]["function"] = _joined(calls[call["index"]]["function"], call["function"])
        if "function_call" in delta:
            function = _joined(function or {}, delta["function_call"])
    content = "".join(text)
    called = bool(calls) or function is not None
    return AssistantMessage(
        role=role,
        content=silent if called and not content else content,
        function_call=function,
        tool_calls=calls,
    )


def _joined(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    joined = before | more
    joined["arguments"] = before.get("arguments", "") + more.get("arguments", "")
    return joined
