"""POST /v1/audio/transcriptions."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.dialect import Dialect
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.model_call import TRANSCRIPTION, admitted
from appliance.api.openai.forwarding.audio import forward_transcription
from appliance.api.openai.speech.audio_form import PLAIN_LANGUAGE, TranscriptionForm, checked_form
from appliance.api.openai.speech.audio_gateway import gateway_transcription, limited_form
from appliance.api.openai.usage import Meter
from appliance.config import Settings
from appliance.engines.speech.contract import AudioInfo, Segment, TranscriptionOptions
from appliance.engines.speech.engine import SpeechEngine, Transcription
from appliance.engines.speech.subtitles import srt, vtt
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider
from appliance.storage.spool import Spool


@post(
    "/audio/transcriptions", status_code=200, operation_id="createTranscription", tags=["Audio"], access="key"
)
async def transcriptions(request: Request[Any, Any, State]) -> Response[Any]:
    """Turn speech into text: JSON, plain text, subtitles, or a stream of events."""
    catalog: Catalog = request.app.state.catalog
    settings: Settings = request.app.state.settings
    spool: Spool = request.app.state.spool
    dialect = dialect_of(request)
    async with limited_form(request, spool, settings.max_upload_bytes, dialect) as uploaded:
        # A form without a model's name is refused for it.
        call, form = await admitted(
            request, uploaded.get("model") or None, TRANSCRIPTION, lambda: checked_form(uploaded, dialect)
        )
        meter = Meter(call, dialect)

        async def answer(provider: Provider) -> Response[Any]:
            # It has no tokens that cost, yet who has spent the budget is not served by what is not free.
            call.reserve(0)
            if not provider.is_local:
                return await forward_transcription(request, call, provider, form)
            engine = catalog.engine(catalog.find(provider.model_name), SpeechEngine, "transcription")
            # The engine keeps a descriptor of its own while it works.
            transcription = engine.transcribe(form.file.descriptor(), _options_for(engine, form))
            at_end(request, transcription.cancel)
            if form.stream:
                return await _stream(request, transcription, meter, call, dialect)
            return await until_disconnect(request, _complete(transcription, form, meter, dialect))

        return await call.dispatch(answer)


def _options_for(engine: SpeechEngine, form: TranscriptionForm) -> TranscriptionOptions:
    """Return the options for a model: one that knows English alone has nothing to translate."""
    if form.options.task == "translate" and not engine.multilingual:
        return msgspec.structs.replace(form.options, task="transcribe", language=PLAIN_LANGUAGE)
    return form.options


async def _complete(
    transcription: Transcription, form: TranscriptionForm, meter: Meter, dialect: Dialect
) -> Response[Any]:
    info = await transcription.info()
    segments = [segment async for segment in transcription]
    if dialect.output_language:
        return gateway_transcription(_text(segments), form.response_format, form.model, meter)
    if form.response_format == "text":
        return Response(_text(segments) + "\n", media_type="text/plain")
    if form.response_format == "srt":
        return Response(srt(segments), media_type="application/x-subrip; charset=utf-8")
    if form.response_format == "vtt":
        return Response(vtt(segments), media_type="text/vtt")
    body = _plain_body(info, segments, form)
    if not dialect.plain_transcriptions:
        body |= _additions(info, segments, form, meter)
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _stream(
    request: Request[Any, Any, State],
    transcription: Transcription,
    meter: Meter,
    call: ModelCall,
    dialect: Dialect,
) -> Response[Any]:
    # What is wrong with the audio must answer with a status, before the first byte.
    info = await until_disconnect(request, transcription.info())
    return event_stream(_events(transcription, info, meter), dialect, done=False, on_failure=call.broken)


async def _events(
    transcription: Transcription, info: AudioInfo, meter: Meter
) -> AsyncGenerator[dict[str, Any], None]:
    segments: list[Segment] = []
    async for segment in transcription:
        text = segment.text if segments else segment.text.lstrip()
        segments.append(segment)
        meter.first_token()
        yield {"type": "transcript.text.delta", "delta": text}
    yield {"type": "transcript.text.done", "text": _text(segments), "usage": _usage(info, meter)}


def _plain_body(info: AudioInfo, segments: list[Segment], form: TranscriptionForm) -> dict[str, Any]:
    """Return the JSON answer as CompactifAI has it, which every other JSON form begins with."""
    return {
        "task": form.options.task,
        "language": info.language,
        "duration": info.duration,
        "text": _text(segments),
        "segments": [_segment(segment) for segment in segments],
    }


def _additions(
    info: AudioInfo, segments: list[Segment], form: TranscriptionForm, meter: Meter
) -> dict[str, Any]:
    """Return what OpenAI's and OpenGateLLM's clients read beside it."""
    added: dict[str, Any] = {
        "id": f"transcription-{uuid.uuid4().hex}",
        "model": form.model,
        "usage": _usage(info, meter),
    }
    if form.response_format == "verbose_json":
        added["segments"] = [_segment(segment) | _details(segment) for segment in segments]
        if form.options.word_timestamps:
            added["words"] = [word for segment in segments for word in segment.words or ()]
    return added


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text.strip(),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
    }


def _details(segment: Segment) -> dict[str, Any]:
    return {
        "seek": segment.seek,
        "tokens": segment.tokens,
        "compression_ratio": segment.compression_ratio,
    }


def _text(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments).strip()


def _usage(info: AudioInfo, meter: Meter) -> dict[str, Any]:
    """Both key sets: OpenAI's duration, and token counts, of which transcription has none."""
    counted: dict[str, Any] = msgspec.to_builtins(meter.usage())
    return {"type": "duration", "seconds": math.ceil(info.duration)} | {
        key: value for key, value in counted.items() if value is not None
    }
