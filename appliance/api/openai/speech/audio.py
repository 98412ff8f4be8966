"""POST /v1/audio/transcriptions."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.dialect import Dialect
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.field_errors import FieldError, UnprocessableError
from appliance.api.form import Form, shown
from appliance.api.model_call import TRANSCRIPTION, admitted
from appliance.api.openai.forwarding.audio import forward_transcription
from appliance.api.openai.speech.audio_gateway import (
    file_errors,
    gateway_form,
    gateway_transcription,
    limited_form,
)
from appliance.api.openai.usage import Meter
from appliance.config import Settings
from appliance.engines.speech.contract import AudioInfo, Segment, TranscriptionOptions
from appliance.engines.speech.engine import SpeechEngine, Transcription
from appliance.engines.speech.languages import language_code
from appliance.engines.speech.subtitles import srt, vtt
from appliance.errors import InvalidRequestError
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider
from appliance.storage.spool import Spool, Upload

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
GRANULARITIES = ("segment", "word")
# The language of a form that names none, where that does not mean to detect it.
PLAIN_LANGUAGE = "en"

AUDIO_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "wav, mp3, flac, ogg (vorbis, opus) …"},
        "model": {"type": "string"},
        "language": {"type": "string", "description": "ISO code or English name; absent = detected"},
        "prompt": {"type": "string"},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
        "timestamp_granularities[]": {
            "type": "array",
            "items": {"type": "string", "enum": list(GRANULARITIES)},
        },
        "stream": {"type": "boolean", "default": False},
        "include[]": {"type": "array", "items": {"type": "string"}, "description": "accepted and ignored"},
        "chunking_strategy": {"type": "string", "description": "accepted and ignored"},
    },
}


class TranscriptionForm(msgspec.Struct, frozen=True, kw_only=True):
    """The checked form; §18 of the contract."""

    file: Upload
    model: str
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"]
    stream: bool
    options: TranscriptionOptions


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
            request, uploaded.get("model") or None, TRANSCRIPTION, lambda: _form(uploaded, dialect)
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


async def _form(form: Form, dialect: Dialect) -> TranscriptionForm:
    """Check the form as its mount does."""
    if dialect.output_language:
        file, fields = gateway_form(form)
        return TranscriptionForm(
            file=file,
            model=fields.model,
            response_format=fields.response_format,
            stream=False,
            options=fields.options(),
        )
    return _checked_plain(form) if dialect.plain_transcriptions else _checked(form)


def _checked(form: Form) -> TranscriptionForm:
    """Check the form's fields. Raises InvalidRequestError for what is missing or out of bounds."""
    if form.file is None and form.get("file") is not None:
        raise InvalidRequestError("`file` must be sent as a file, with a filename.", param="file")
    if form.file is None:
        raise InvalidRequestError("`file` is missing: send the audio as a file of the form.", param="file")
    return TranscriptionForm(
        file=form.file,
        model=_required_model(form),
        response_format=_choice(form.get("response_format") or "json", FORMATS, "response_format"),
        stream=_boolean(form.get("stream") or ""),
        options=TranscriptionOptions(
            language=_language(form.get("language") or ""),
            prompt=form.get("prompt") or "",
            temperature=_temperature(form.get("temperature") or ""),
            word_timestamps="word" in _granularities(form),
        ),
    )


def _checked_plain(form: Form) -> TranscriptionForm:
    """Check the form as CompactifAI does: the answer is its JSON whatever else is asked for.

    Raises UnprocessableError for what is missing, InvalidRequestError for what is out of bounds.
    """
    file, model = form.file, form.get("model")
    if file is None or not model:
        missing = [] if model else [FieldError(["body", "model"], "Field required", "missing")]
        raise UnprocessableError([*file_errors(form), *missing])
    _choice(form.get("response_format") or "json", FORMATS, "response_format")
    return TranscriptionForm(
        file=file,
        model=model,
        response_format="json",
        stream=False,
        options=TranscriptionOptions(
            language=_language(form.get("language") or PLAIN_LANGUAGE),
            prompt=form.get("prompt") or "",
            temperature=_temperature(form.get("temperature") or ""),
        ),
    )


def _required_model(form: Form) -> str:
    name = form.get("model")
    if not name:
        raise InvalidRequestError("`model` is missing.", param="model")
    return name


def _language(text: str) -> str | None:
    return language_code(text) if text.strip() else None


def _temperature(text: str) -> float:
    try:
        temperature = float(text.strip() or 0)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise InvalidRequestError(f"temperature must be in [0, 1], got {shown(text)}.", param="temperature")
    return temperature


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("", "true", "false", "1", "0"):
        raise InvalidRequestError("`stream` must be true or false.", param="stream")
    return word in ("true", "1")


def _granularities(form: Form) -> list[str]:
    values = [*form.getall("timestamp_granularities[]"), *form.getall("timestamp_granularities")]
    return [_choice(value, GRANULARITIES, "timestamp_granularities") for value in values]


def _choice(value: str, allowed: tuple[str, ...], name: str) -> Any:
    if value not in allowed:
        raise InvalidRequestError(
            f"{name} must be one of {', '.join(allowed)}, got {shown(value)}.", param=name
        )
    return value
