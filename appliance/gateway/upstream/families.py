"""What each family of upstream servers serves, where, and how a request's body must look there."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.gateway.errors import ProviderBusyError
from appliance.gateway.routing.records import ProviderType
from appliance.gateway.upstream.client import Fields, Upstream

Kind = Literal["chat", "completions", "embeddings", "transcription", "rerank", "ocr"]

_GENERATION: dict[Kind, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_EMBEDDINGS: dict[Kind, str] = {"embeddings": "/v1/embeddings"}
_TRANSCRIPTION: dict[Kind, str] = {"transcription": "/v1/audio/transcriptions"}

PATHS: dict[ProviderType, dict[Kind, str]] = {
    "local": {},
    "vllm": {**_GENERATION, **_EMBEDDINGS, **_TRANSCRIPTION, "rerank": "/v2/rerank"},
    "openai": {**_GENERATION, **_EMBEDDINGS, **_TRANSCRIPTION},
    "albert": {**_GENERATION, **_EMBEDDINGS, **_TRANSCRIPTION, "rerank": "/v1/rerank", "ocr": "/v1/ocr"},
    "appliance": {**_GENERATION, **_EMBEDDINGS, **_TRANSCRIPTION, "rerank": "/v1/rerank", "ocr": "/v1/ocr"},
    "tei": {**_EMBEDDINGS, "rerank": "/rerank"},
    # Speech goes to its chat models.
    "mistral": {"chat": "/v1/chat/completions", "transcription": "/v1/chat/completions", "ocr": "/v1/ocr"},
}
# Families that answer ``stream_options`` with the usage; the others refuse the field or send it anyway.
COUNTING_STREAMS: frozenset[ProviderType] = frozenset({"vllm", "openai", "albert", "appliance"})

# What Mistral's chat route takes; it refuses any other field.
MISTRAL_CHAT = frozenset(
    {
        *("model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed"),
        *("response_format", "tools", "tool_choice", "parallel_tool_calls", "presence_penalty"),
        *("frequency_penalty", "n", "prediction", "prompt_mode", "reasoning_effort", "safe_prompt"),
        "metadata",
    }
)
MISTRAL_OCR = frozenset(
    {
        *("model", "id", "document", "pages", "include_image_base64", "image_limit", "image_min_size"),
        *("bbox_annotation_format", "document_annotation_format", "document_annotation_prompt"),
        *("table_format", "extract_header", "extract_footer"),
    }
)
# OpenAI refuses these beside no tools at all.
_ONLY_WITH_TOOLS = ("tool_choice", "parallel_tool_calls")

NULL = msgspec.Raw(b"null")


def path(upstream: Upstream, kind: Kind) -> str:
    """Return where the upstream does this. Raises ProviderBusyError (503: another provider may) if nowhere."""
    found = PATHS[upstream.type].get(kind)
    if found is None:
        raise ProviderBusyError(f"The provider of this model does not serve {kind}.", retry_after=60)
    return found


def adapted(upstream: Upstream, kind: Kind, fields: Fields) -> Fields:
    """Return a request's fields as the upstream takes them, for its own name of the model."""
    fields = {**fields, "model": raw(upstream.model_name)}
    if is_null(fields.get("tools")) or bytes(fields["tools"]).strip(b"[] \t\r\n") == b"":
        # Strict servers refuse an empty list.
        if "tools" in fields:
            fields["tools"] = NULL
        if upstream.type in ("openai", "mistral"):
            for name in _ONLY_WITH_TOOLS:
                fields.pop(name, None)
    if upstream.type == "openai":
        return {name: value for name, value in fields.items() if not _is_absent(value)}
    if upstream.type == "mistral":
        return _for_mistral(kind, fields)
    return fields


def _for_mistral(kind: Kind, fields: Fields) -> Fields:
    for theirs, ours in (("random_seed", "seed"), ("max_tokens", "max_completion_tokens")):
        if not is_null(fields.get(ours)):
            fields[theirs] = fields[ours]
    if fields.get("tool_choice") == msgspec.Raw(b'"required"'):
        fields["tool_choice"] = raw("any")
    known = MISTRAL_OCR if kind == "ocr" else MISTRAL_CHAT
    return {name: value for name, value in fields.items() if name in known and not _is_absent(value)}


def raw(value: Any) -> msgspec.Raw:
    """Return a value as a field."""
    return msgspec.Raw(msgspec.json.encode(value))


def is_null(value: msgspec.Raw | None) -> bool:
    """Tell whether a field is absent or null."""
    return value is None or value == NULL


def _is_absent(value: msgspec.Raw) -> bool:
    """Tell whether a field says nothing: null, or an empty list."""
    return memoryview(value).nbytes <= len(b"null") and bytes(value) in (b"null", b"[]")
