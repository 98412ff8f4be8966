"""Counting tokens of texts that another box's model reads or writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from litestar import Request

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.engine import GenerationEngine
from appliance.gateway.catalog import Catalog
from appliance.gateway.upstream.counts import roughly

# Longer texts are not worth a tokenizer's time for an estimate.
MAX_CHARACTERS = 1 << 20


async def token_count(request: Request[Any, Any, Any], texts: Iterable[str]) -> int:
    """Estimate the tokens of texts: by a chat model of this box if one is loaded, else from their bytes."""
    pieces = [text for text in texts if text]
    engine = _tokenizing_engine(request)
    if not pieces:
        return 0
    if engine is not None and sum(map(len, pieces)) <= MAX_CHARACTERS:
        try:
            return len(await engine.encode("\n".join(pieces), False, literal=True))
        except InputRefusedError:
            pass  # too long for it after all: the bytes tell
    return roughly(sum(len(piece.encode("utf-8", "replace")) for piece in pieces))


def message_texts(messages: Any, tools: Any = None) -> Iterator[str]:
    """Yield what a model reads of a chat: contents, text parts, tool calls, and the tools offered."""
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text
        if message.get("tool_calls"):
            yield msgspec.json.encode(message["tool_calls"]).decode()
    if tools:
        yield msgspec.json.encode(tools).decode()


def only_texts(messages: Any) -> bool:
    """Tell whether a chat holds nothing but what ``message_texts`` yields: no images, no sounds, no files."""
    return all(
        isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") == "text")
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def flat_texts(value: Any) -> tuple[list[str], int]:
    """Return the texts of a ``prompt`` or ``input``, and how many token ids it holds beside them."""
    if isinstance(value, str):
        return [value], 0
    texts: list[str] = []
    ids = 0
    for item in value if isinstance(value, list) else ():
        if isinstance(item, str):
            texts.append(item)
        else:
            ids += len(item) if isinstance(item, list) else 1
    return texts, ids


def _tokenizing_engine(request: Request[Any, Any, Any]) -> GenerationEngine | None:
    catalog: Catalog = request.app.state.catalog
    engines = (model.engine for model in catalog.models())
    return next((engine for engine in engines if isinstance(engine, GenerationEngine)), None)
