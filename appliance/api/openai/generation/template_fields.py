"""What a chat request gives the model's template besides the messages."""

from __future__ import annotations

from typing import Any

from appliance.api.openai.generation.checks import refused

MAX_DOCUMENTS = 1000
MAX_VARIABLES = 64
# What the server itself tells the template; the template is the pack's own.
RESERVED = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("chat_template", "bos_token", "eos_token"),
    }
)


def check_template_fields(
    chat_template: str | None, variables: dict[str, Any] | None, documents: list[Any] | None
) -> None:
    """Check the fields. Raises InvalidRequestError, also for a template: rendering one is running a program."""
    if chat_template is not None:
        raise refused(
            "chat_template", "`chat_template` is not accepted in a request: the model's own template is used."
        )
    taken = sorted(RESERVED & (variables or {}).keys())
    if taken:
        raise refused("chat_template_kwargs", f"`chat_template_kwargs` cannot set `{taken[0]}`.")
    if len(variables or ()) > MAX_VARIABLES:
        raise refused(
            "chat_template_kwargs",
            f"chat_template_kwargs may hold at most {MAX_VARIABLES} names, got {len(variables or ())}.",
        )
    if len(documents or ()) > MAX_DOCUMENTS:
        raise refused(
            "documents", f"documents may hold at most {MAX_DOCUMENTS} documents, got {len(documents or ())}."
        )
    if not all(isinstance(document, dict) for document in documents or ()):
        raise refused("documents", "documents must be an array of objects.")


def template_variables(
    variables: dict[str, Any] | None, reasoning_effort: str | None, reasoning_enabled: bool | None
) -> dict[str, Any]:
    """Return the names that a template may use; what the request names itself wins.

    ``enable_thinking`` is how the templates of several model families call ``reasoning_enabled``.
    """
    found: dict[str, Any] = {}
    if reasoning_effort is not None:
        found["reasoning_effort"] = reasoning_effort
    if reasoning_enabled is not None:
        found["reasoning_enabled"] = found["enable_thinking"] = reasoning_enabled
    return found | (variables or {})
