"""Chat messages: from the request's forms to what a chat template takes."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.errors import InvalidRequestError

MAX_MESSAGES = 10_000
MAX_PARTS = 1000


class Message(msgspec.Struct, kw_only=True):
    """One message of a chat request. ``content`` is text, a list of parts, or null."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the messages as plain dicts with text content.

    Text parts are joined by newlines; a message without content and tool calls is dropped;
    ``developer`` is ``system``; a legacy ``function_call`` is the only tool call. Raises
    InvalidRequestError for no messages and for parts that the model cannot take: nothing is silently left out.
    """
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(f"messages may hold at most {MAX_MESSAGES} messages.", param="messages")
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        calls = _tool_calls(message)
        if message.content is None and not calls:
            continue
        shaped: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": _text(message.content, f"messages[{index}].content"),
        }
        if message.name is not None:
            shaped["name"] = message.name
        if message.tool_call_id is not None:
            shaped["tool_call_id"] = message.tool_call_id
        if calls:
            shaped["tool_calls"] = [_parsed_call(call) for call in calls]
        result.append(shaped)
    if not result:
        raise InvalidRequestError("messages must contain at least one message.", param="messages")
    return result


def _tool_calls(message: Message) -> list[dict[str, Any]]:
    if message.tool_calls or message.function_call is None:
        return message.tool_calls or []
    return [{"type": "function", "function": message.function_call}]


def _text(content: str | list[dict[str, Any]] | None, path: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if len(content) > MAX_PARTS:
        raise InvalidRequestError(f"{path} may hold at most {MAX_PARTS} parts.", param=path)
    return "\n".join(_part_text(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part_text(part: dict[str, Any], path: str) -> str:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequestError(f"{path}: a {kind} part needs a string `{kind}`", param=path)
        return text
    if kind == "image_url":
        raise InvalidRequestError(
            "'image_url' input is not supported as the loaded model is not multimodal.", param=path
        )
    if kind in ("input_audio", "file"):
        raise InvalidRequestError(f"'{kind}' input is not supported by the loaded model.", param=path)
    raise InvalidRequestError(f"Unknown part type: {kind}", param=path)


def _parsed_call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates want the arguments as an object; text that is no JSON is passed as it is."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except (msgspec.DecodeError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
