"""Transcription by upstream servers: the form goes on from the spool, the answer comes back in our form."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import msgspec
from litestar import Request, Response

from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.openai.forwarding.answer import choices_of
from appliance.api.openai.forwarding.target import client_of, headers_for, upstream_of
from appliance.api.openai.speech.audio_form import TranscriptionForm
from appliance.api.openai.speech.audio_gateway import gateway_transcription
from appliance.api.openai.usage import Meter
from appliance.errors import ApplianceError
from appliance.gateway.call import ModelCall
from appliance.gateway.errors import UpstreamError
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.client import Fields, Upstream, fetch, fields_of
from appliance.gateway.upstream.events import EventStream, open_stream
from appliance.gateway.upstream.failures import error_event, unavailable
from appliance.gateway.upstream.families import path
from appliance.gateway.upstream.uploads import audio_ending, json_around, multipart

# Families whose streams are OpenAI's transcript events; the others are asked for the whole text.
STREAMING = ("openai", "appliance")
# Where speech is translated into English; the others are told that English is spoken, which makes them write it.
TRANSLATION_PATHS = {
    "openai": "/v1/audio/translations",
    # There ``language`` is the one to answer in.
    "appliance": "/opengatellm/v1/audio/transcriptions",
}
SUBTITLES = {"srt": "application/x-subrip; charset=utf-8", "vtt": "text/vtt"}
# Families that make subtitles and segments themselves.
FORMATTING = ("openai", "appliance", "vllm")

encode = msgspec.json.encode


async def forward_transcription(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, form: TranscriptionForm
) -> Response[Any]:
    """Answer with what a provider makes of an audio form. Raises as ``forwarding.forward``."""
    upstream = upstream_of(request, provider)
    meter = Meter(call, dialect_of(request))
    if form.response_format in SUBTITLES and upstream.type not in FORMATTING:
        raise UpstreamError(
            f"The provider of this model does not answer in {form.response_format}.", param="response_format"
        )
    if form.stream and upstream.type in STREAMING:
        return await _stream(request, call, upstream, form, meter)
    asked = _asked_format(upstream, form, plain=dialect_of(request).plain_transcriptions)
    content, headers = _form(upstream, form, asked)
    headers |= headers_for(request, upstream)
    body = await until_disconnect(
        request, fetch(client_of(request), upstream, _path(upstream, form), content, headers)
    )
    if form.response_format in SUBTITLES:
        return Response(_text_of(upstream, body), media_type=SUBTITLES[form.response_format])
    answer = _transcript(upstream, await fields_of(upstream, body))
    if form.stream:
        return event_stream(
            _as_events(answer, meter), dialect_of(request), done=False, on_failure=call.broken
        )
    if dialect_of(request).output_language:
        return gateway_transcription(answer["text"], form.response_format, form.model, meter)
    if form.response_format == "text":
        return Response(answer["text"] + "\n", media_type="text/plain")
    return Response(encode(_shown(request, answer, form, meter)), media_type="application/json")


def _asked_format(upstream: Upstream, form: TranscriptionForm, *, plain: bool) -> str:
    """Return the format that the upstream is asked for: Albert knows JSON alone."""
    if upstream.type not in FORMATTING:
        return "json"
    if form.response_format in SUBTITLES:
        return form.response_format
    return "verbose_json" if plain or form.response_format == "verbose_json" else "json"


def _path(upstream: Upstream, form: TranscriptionForm) -> str:
    if form.options.task == "translate" and upstream.type in TRANSLATION_PATHS:
        return TRANSLATION_PATHS[upstream.type]
    return path(upstream, "transcription")


def _form(
    upstream: Upstream, form: TranscriptionForm, response_format: str, *, stream: bool = False
) -> tuple[AsyncIterable[bytes], dict[str, str]]:
    """Return the body and headers for an upstream."""
    options = form.options
    if upstream.type == "mistral":
        return _chat(upstream, form)
    language = "en" if options.task == "translate" else options.language
    if language is None and upstream.type == "vllm":
        language = "en"
    fields = [("model", upstream.model_name), ("response_format", response_format)]
    fields.append(("temperature", repr(options.temperature)))
    if language is not None:
        fields.append(("language", language))
    if options.prompt:
        fields.append(("prompt", options.prompt))
    if options.word_timestamps and response_format == "verbose_json":
        fields += [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")]
    if stream:
        fields.append(("stream", "true"))
    return multipart(fields, f"audio.{audio_ending(form.file)}", form.file)


def _chat(upstream: Upstream, form: TranscriptionForm) -> tuple[AsyncIterable[bytes], dict[str, str]]:
    """Return the chat that asks one of Mistral's models for what is said."""
    options = form.options
    instruction = options.prompt or "Transcribe this audio"
    if not options.prompt:
        language = "en" if options.task == "translate" else options.language
        instruction += f" in the language {language!r}." if language else " in the language that is spoken."
    place = uuid.uuid4().hex
    body = encode(
        {
            "model": upstream.model_name,
            "temperature": options.temperature,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": place},
                        {"type": "text", "text": instruction},
                    ],
                }
            ],
        }
    )
    before, _, after = body.partition(place.encode())
    return json_around(before, form.file, after)


def _text_of(upstream: Upstream, body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unavailable(upstream.name, "answers what is no text") from error


def _transcript(upstream: Upstream, answer: Fields) -> dict[str, Any]:
    """Return an answer's fields; ``text`` is among them. Raises UpstreamUnavailableError when it is not."""
    if upstream.type == "mistral":
        text = "".join(text for choice in choices_of(upstream, answer)[:1] for text in choice.texts())
        return {"text": text.strip()}
    try:
        found = {name: msgspec.json.decode(value) for name, value in answer.items()}
    except (msgspec.DecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers what cannot be read: {error}") from error
    if not isinstance(found.get("text"), str):
        raise unavailable(upstream.name, "answers without a text")
    return found


def _shown(
    request: Request[Any, Any, Any], answer: dict[str, Any], form: TranscriptionForm, meter: Meter
) -> dict[str, Any]:
    """Return the JSON that the mount's clients read, with what the upstream tells beside the text."""
    if dialect_of(request).plain_transcriptions:
        return {
            "task": form.options.task,
            "language": answer.get("language") or form.options.language,
            "duration": answer.get("duration"),
            "text": answer["text"],
            "segments": answer.get("segments") or [],
        }
    given = answer.get("id")
    return {
        **answer,
        "id": given if isinstance(given, str) and given else f"request-{uuid.uuid4().hex}",
        "model": form.model,
        "usage": _usage(answer, meter),
    }


def _usage(answer: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """Return the token counts, of which transcription has none, and the duration where it is known."""
    usage = answer.get("usage")
    seconds = usage.get("seconds") if isinstance(usage, dict) else answer.get("duration")
    if isinstance(seconds, str):  # so OpenAI's verbose answers once had it
        seconds = answer.get("duration")
    known = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < 1 << 31
    counted: dict[str, Any] = msgspec.to_builtins(meter.usage())
    duration = {"type": "duration", "seconds": math.ceil(seconds)} if known else {}  # type: ignore[arg-type] # known
    return duration | {key: value for key, value in counted.items() if value is not None}


async def _as_events(answer: dict[str, Any], meter: Meter) -> AsyncGenerator[dict[str, Any], None]:
    meter.first_token()
    yield {"type": "transcript.text.delta", "delta": answer["text"]}
    yield {"type": "transcript.text.done", "text": answer["text"], "usage": _usage(answer, meter)}


async def _stream(
    request: Request[Any, Any, Any],
    call: ModelCall,
    upstream: Upstream,
    form: TranscriptionForm,
    meter: Meter,
) -> Response[Any]:
    content, headers = _form(upstream, form, "json", stream=True)
    headers |= headers_for(request, upstream)
    stream = await until_disconnect(
        request, open_stream(client_of(request), upstream, _path(upstream, form), content, headers)
    )
    at_end(request, stream.abandon)
    try:
        first = await stream.next()
        event = None if first is None else _event(upstream, first)
    except ApplianceError:
        stream.abandon()  # it is not to work on while another server answers
        raise
    return event_stream(
        _events(upstream, stream, event, meter), dialect_of(request), done=False, on_failure=call.broken
    )


async def _events(
    upstream: Upstream, stream: EventStream, event: dict[str, Any] | None, meter: Meter
) -> AsyncGenerator[dict[str, Any], None]:
    while event is not None:
        if event.get("type") == "transcript.text.done":
            yield {**event, "usage": _usage(event, meter)}
            return
        meter.first_token()
        yield event
        following = await stream.next()
        event = None if following is None else _event(upstream, following)
    raise unavailable(upstream.name, "ends a stream before its text's end")


def _event(upstream: Upstream, data: bytes) -> dict[str, Any]:
    """Return an event. Raises what it says is wrong, UpstreamUnavailableError when it is none."""
    try:
        event = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"sends an event that is no JSON object: {error}") from error
    if event.get("error") is not None:
        raise error_event(upstream.name, upstream.without_key(data))
    return event
