"""Transcription on OpenGateLLM's mount: ``language`` is the one to answer in, whatever is spoken."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.api.dialect import Dialect
from appliance.api.field_errors import FieldError, UnprocessableError
from appliance.api.form import MULTIPART, URL_ENCODED, Form, content_type, uploaded_form
from appliance.api.leniency import lenient
from appliance.api.openai.usage import Meter
from appliance.api.validation import listed, shown_input, value_errors
from appliance.engines.speech.contract import TranscriptionOptions
from appliance.engines.speech.languages import LANGUAGE_WORDS, language_code
from appliance.errors import ApplianceError
from appliance.storage.spool import Spool, Upload

# What a form may hold beside its file.
OTHER_BYTES = 1 << 20


class GatewayFields(msgspec.Struct, frozen=True, kw_only=True):
    """The form's text fields; §10.4 of OpenGateLLM's contract."""

    model: str
    language: str = ""
    prompt: str = ""
    response_format: Literal["json", "text"] = "json"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def options(self) -> TranscriptionOptions:
        """Return what the engine is asked: English is whisper's translation, other languages are forced on it."""
        code = language_code(self.language) if self.language else None
        return TranscriptionOptions(
            language=None if code == "en" else code,
            prompt=self.prompt,
            temperature=self.temperature,
            task="translate" if code == "en" else "transcribe",
        )


@asynccontextmanager
async def limited_form(
    request: Request[Any, Any, Any], spool: Spool, most: int, dialect: Dialect
) -> AsyncIterator[Form]:
    """Read an audio form of at most ``most`` bytes, and of a file no larger than the mount takes (413).

    Raises UnprocessableError for what is no form where that is one without its fields.
    """
    lists = dialect.output_language or dialect.plain_transcriptions
    if lists and content_type(request) not in (MULTIPART, URL_ENCODED):
        raise UnprocessableError(
            [FieldError(["body", name], "Field required", "missing", None) for name in ("file", "model")]
        )
    most_of_file = dialect.max_audio_bytes
    if most_of_file is None:
        async with uploaded_form(request, spool, file_field="file", max_bytes=most) as form:
            yield form
        return
    too_large = ApplianceError(
        f"File size limit exceeded (max: {most_of_file} bytes).", status=413, type="invalid_request_error"
    )
    reading = uploaded_form(
        request, spool, file_field="file", max_bytes=min(most, most_of_file + OTHER_BYTES)
    )
    try:
        form = await reading.__aenter__()
    except RequestEntityTooLarge:
        raise too_large from None
    try:
        if form.file is not None and form.file.size > most_of_file:
            raise too_large
        yield form
    finally:
        await reading.__aexit__(None, None, None)


def file_errors(form: Form) -> list[FieldError]:
    """Return what FastAPI says of a form without its file, or with a text in its place."""
    if form.file is not None:
        return []
    text = form.get("file")
    if text:
        message = "Value error, Expected UploadFile, received: <class 'str'>"
        return [FieldError(["body", "file"], message, "value_error", shown_input(text), {"error": {}})]
    return [FieldError(["body", "file"], "Field required", "missing", None)]


def gateway_form(form: Form) -> tuple[Upload, GatewayFields]:
    """Return the file and the checked fields; an empty text is none.

    Raises UnprocessableError with all that is wrong.
    """
    values = {name: form.get(name) for name in GatewayFields.__struct_fields__}
    given = {name: value for name, value in values.items() if value}
    errors = [*file_errors(form), *value_errors(given, GatewayFields, ["body"])]
    if given.get("language", "") not in LANGUAGE_WORDS:
        words = listed(sorted(LANGUAGE_WORDS))
        errors.append(
            FieldError(
                ["body", "language"],
                f"Input should be {words}",
                "enum",
                given["language"][:100],
                {"expected": words},
            )
        )
    if errors or form.file is None:
        raise UnprocessableError(errors)
    return form.file, msgspec.convert(lenient(given, GatewayFields), GatewayFields, strict=False)


def gateway_transcription(text: str, response_format: str, model: str, meter: Meter) -> Response[Any]:
    """Return the answer: the bare text, or id, text, model and usage."""
    if response_format == "text":
        return Response(text, media_type="text/plain")
    body = {
        "id": f"transcription-{uuid.uuid4().hex}",
        "text": text,
        "model": model,
        "usage": meter.usage(),
    }
    return Response(msgspec.json.encode(body), media_type="application/json")
