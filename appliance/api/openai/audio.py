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
from appliance.api.form import Form, shown, uploaded_form
from appliance.config import Settings
from appliance.engines.speech.contract import AudioInfo, Segment, TranscriptionOptions
from appliance.engines.speech.engine import SpeechEngine, Transcription
from appliance.engines.speech.languages import language_code
from appliance.engines.speech.subtitles import srt, vtt
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog
from appliance.gateway.errors import ModelNotFoundError
from appliance.storage.spool import Spool, Upload

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
GRANULARITIES = ("segment", "word")

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
    },
}


class TranscriptionForm(msgspec.Struct, frozen=True, kw_only=True):
    """The checked form; §18 of the contract."""

    file: Upload
    model: str
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"]
    stream: bool
    options: TranscriptionOptions


@post("/audio/transcriptions", status_code=200, operation_id="createTranscription", tags=["Audio"])
async def transcriptions(request: Request[Any, Any, State]) -> Response[Any]:
    """Turn speech into text: JSON, plain text, subtitles, or a stream of events."""
    catalog: Catalog = request.app.state.catalog
    settings: Settings = request.app.state.settings
    spool: Spool = request.app.state.spool
    dialect = dialect_of(request)
    async with uploaded_form(
        request, spool, file_field="file", max_bytes=settings.max_upload_bytes
    ) as uploaded:
        form = _checked(uploaded)
        engine = catalog.engine(catalog.find(form.model), SpeechEngine, "transcription")
        # The engine keeps a descriptor of its own while it works.
        transcription = engine.transcribe(form.file.descriptor(), form.options)
        at_end(request, transcription.cancel)
    if form.stream:
        return await _stream(request, transcription, dialect)
    return await until_disconnect(request, _complete(transcription, form))


async def _complete(transcription: Transcription, form: TranscriptionForm) -> Response[Any]:
    info = await transcription.info()
    segments = [segment async for segment in transcription]
    if form.response_format == "text":
        return Response(_text(segments) + "\n", media_type="text/plain")
    if form.response_format == "srt":
        return Response(srt(segments), media_type="application/x-subrip; charset=utf-8")
    if form.response_format == "vtt":
        return Response(vtt(segments), media_type="text/vtt; charset=utf-8")
    body = transcription_body(info, segments, form)
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _stream(
    request: Request[Any, Any, State], transcription: Transcription, dialect: Dialect
) -> Response[Any]:
    # What is wrong with the audio must answer with a status, before the first byte.
    info = await until_disconnect(request, transcription.info())
    return event_stream(_events(transcription, info), dialect, done=False)


async def _events(transcription: Transcription, info: AudioInfo) -> AsyncGenerator[dict[str, Any], None]:
    segments: list[Segment] = []
    async for segment in transcription:
        text = segment.text if segments else segment.text.lstrip()
        segments.append(segment)
        yield {"type": "transcript.text.delta", "delta": text}
    yield {"type": "transcript.text.done", "text": _text(segments), "usage": _usage(info)}


def transcription_body(info: AudioInfo, segments: list[Segment], form: TranscriptionForm) -> dict[str, Any]:
    """Return the JSON answer: what OpenAI, CompactifAI and OpenGateLLM clients read, in one object."""
    verbose = form.response_format == "verbose_json"
    body: dict[str, Any] = {
        "task": form.options.task,
        "language": info.language,
        "duration": info.duration,
        "text": _text(segments),
        "segments": [_segment(segment, verbose=verbose) for segment in segments],
        "id": f"transcription-{uuid.uuid4().hex}",
        "model": form.model,
        "usage": _usage(info),
    }
    if verbose and form.options.word_timestamps:
        body["words"] = [word for segment in segments for word in segment.words or ()]
    return body


def _segment(segment: Segment, *, verbose: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": segment.id,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text.strip(),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
    }
    if verbose:
        shown |= {
            "seek": segment.seek,
            "tokens": segment.tokens,
            "compression_ratio": segment.compression_ratio,
        }
    return shown


def _text(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments).strip()


def _usage(info: AudioInfo) -> dict[str, Any]:
    """Both key sets: OpenAI's duration, and token counts, of which transcription has none."""
    return {
        "type": "duration",
        "seconds": math.ceil(info.duration),
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
    }


def _checked(form: Form) -> TranscriptionForm:
    """Check the form's fields. Raises InvalidRequestError for what is missing or out of bounds."""
    if form.file is None:
        raise InvalidRequestError("`file` is missing: send the audio as a file of the form.", param="file")
    return TranscriptionForm(
        file=form.file,
        model=_model(form.get("model") or ""),
        response_format=_choice(form.get("response_format") or "json", FORMATS, "response_format"),
        stream=_boolean(form.get("stream") or ""),
        options=TranscriptionOptions(
            language=_language(form.get("language") or ""),
            prompt=form.get("prompt") or "",
            temperature=_temperature(form.get("temperature") or ""),
            word_timestamps="word" in _granularities(form),
        ),
    )


def _model(name: str) -> str:
    if not name:
        raise InvalidRequestError("`model` is missing.", param="model")
    if name != shown(name):  # no pack has such a long name; the catalog would repeat all of it
        raise ModelNotFoundError(shown(name))
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
