"""From a conversation to the token ids of its prompt."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.text.chat_template import ChatTemplate
from appliance.engines.generation.text.control_tokens import choose_marker
from appliance.engines.generation.text.tokenizer import Tokenizer


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat template renders; all of it is JSON values from outside.

    ``variables`` are further names for the template. ``continue_final_message`` leaves the last
    message open, so that the answer goes on from it.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[Any] | None = None
    variables: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def chat_prompt(
    template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation, *, add_special_tokens: bool
) -> list[int]:
    """Render ``conversation`` and return its token ids; control tokens spelled in it stay text.

    ``add_special_tokens`` puts the tokenizer's own special tokens on top of the template's. Raises
    InputRefusedError when the template refuses the conversation, or its text is far too long.
    """
    given = [conversation.messages, conversation.tools, conversation.documents, conversation.variables]
    marker = choose_marker(given)
    messages, tools, documents, variables = tokenizer.control_tokens.protect(given, marker)
    end = choose_marker([given, marker])
    if conversation.continue_final_message:
        messages = _with_end(messages, end)
    rendered = template.render(
        messages,
        tools=tools,
        documents=documents,
        variables=variables,
        add_generation_prompt=conversation.add_generation_prompt,
        max_characters=tokenizer.max_characters,
    )
    if conversation.continue_final_message:
        rendered = _left_open(rendered, end)
    ids = tokenizer.encode_rendered(rendered, marker)
    return [*tokenizer.special_prefix, *ids] if add_special_tokens else ids


def _with_end(messages: list[dict[str, Any]], end: str) -> list[dict[str, Any]]:
    """Write ``end`` and a space behind the last message's text."""
    last = messages[-1] if messages else {}
    if not isinstance(last.get("content"), str) or not last["content"].strip():
        raise InputRefusedError(
            "continue_final_message needs a last message with text.", param="continue_final_message"
        )
    return [*messages[:-1], {**last, "content": last["content"] + end + " "}]


def _left_open(rendered: str, end: str) -> str:
    """Cut what the template wrote from the last ``end`` on."""
    text, found, behind = rendered.rpartition(end)
    if not found:
        raise InputRefusedError(
            "continue_final_message needs a chat template that writes the last message as it is.",
            param="continue_final_message",
        )
    # A template that trims what it writes has left no space there, and would have left none before it.
    text = text if behind.startswith(" ") else text.rstrip()
    return text.replace(end + " ", "").replace(end, "")
