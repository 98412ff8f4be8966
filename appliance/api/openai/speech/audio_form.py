"""The form of a transcription: what clients may send, checked as each mount does."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from appliance.api.dialect import Dialect
from appliance.api.field_errors import FieldError, UnprocessableError
from appliance.api.form import Form, shown
from appliance.api.openai.speech.audio_gateway import file_errors, gateway_form
from appliance.engines.speech.contract import TranscriptionOptions
from appliance.engines.speech.languages import language_code
from appliance.errors import InvalidRequestError
from appliance.storage.spool import Upload

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


async def checked_form(form: Form, dialect: Dialect) -> TranscriptionForm:
    """Check the form as its mount does. Raises UnprocessableError or InvalidRequestError, by the mount's ways."""
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
