"""What an upstream server answers, as our own clients read it: our names, and our account of the tokens."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec
from litestar import Request

from appliance.api.openai.forwarding.counts import MAX_CHARACTERS, token_count
from appliance.api.openai.usage import Meter
from appliance.gateway.call import ModelCall
from appliance.gateway.upstream.client import INLINE_BYTES, Fields, Upstream
from appliance.gateway.upstream.counts import Counts, counts, counts_of, streamed
from appliance.gateway.upstream.events import EventStream
from appliance.gateway.upstream.failures import error_event, unavailable
from appliance.gateway.upstream.families import NULL, is_null, raw

encode = msgspec.json.encode


class _Said(msgspec.Struct):
    """What a model says, whole or in part."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None

    def texts(self) -> Iterator[str]:
        """Yield its texts."""
        for text in (self.content, self.reasoning_content or self.reasoning):
            if isinstance(text, str):
                yield text
        if self.tool_calls:
            yield encode(self.tool_calls).decode()


class _Choice(msgspec.Struct):
    """A choice of an answer or of a stream's chunk, of a chat or of a text completion."""

    message: _Said | None = None
    delta: _Said | None = None
    text: Any = None
    finish_reason: Any = None
    index: Any = 0

    def texts(self) -> Iterator[str]:
        """Yield what it says."""
        said = self.message or self.delta
        if said is not None:
            yield from said.texts()
        if isinstance(self.text, str):
            yield self.text


def account(call: ModelCall, said: Counts, completion_tokens: int) -> None:
    """Take over an upstream's counts; ours where it has none that can be: of the prompt what was reserved for."""
    if said.prompt_tokens:
        call.count_prompt(said.prompt_tokens)
    call.completion_tokens = said.completion_tokens or completion_tokens


def own_id(answer: Fields) -> msgspec.Raw:
    """Return an answer's id, or a new one when it has none."""
    given = answer.get("id")
    return raw(f"request-{uuid.uuid4().hex}") if given is None or bytes(given) in (b"null", b'""') else given


def shown_usage(meter: Meter, said: Counts) -> msgspec.Raw:
    """Return the usage as the mount has it, with the upstream's details of the counts where it shows any."""
    usage = meter.usage()
    if usage.prompt_tokens_details is not msgspec.UNSET:
        usage.prompt_tokens_details = said.prompt_details
        usage.completion_tokens_details = said.completion_details
    return raw(usage)


def choices_of(upstream: Upstream, fields: Fields) -> list[_Choice]:
    """Return the choices in an answer or a chunk. Raises UpstreamUnavailableError when it has none."""
    try:
        return msgspec.json.decode(fields.get("choices", b""), type=list[_Choice])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers without choices: {error}") from error


async def generation_answer(
    request: Request[Any, Any, Any],
    call: ModelCall,
    upstream: Upstream,
    meter: Meter,
    answer: Fields,
    model: str,
) -> bytes:
    """Return a whole answer. Raises UpstreamUnavailableError when it is none."""
    if memoryview(answer.get("choices", b"")).nbytes > INLINE_BYTES:
        choices = await asyncio.to_thread(choices_of, upstream, answer)
    else:
        choices = choices_of(upstream, answer)
    said = counts_of(answer)
    texts = (text for choice in choices for text in choice.texts())
    written = 0 if said.completion_tokens else await token_count(request, texts)
    account(call, said, written)
    answer |= {"id": own_id(answer), "model": raw(model), "usage": shown_usage(meter, said)}
    return encode(answer)


class Relay:
    """A stream on its way from an upstream to the client.

    ``with_usage`` ends it with the usage, ``running_usage`` leaves that in its chunks where the upstream
    sends it. Tokens are counted as they pass: a client that leaves has used what it was sent. Choices are remembered
    until the stream's end: more than ``most_choices`` are none that anybody asked for.
    """

    def __init__(
        self,
        request: Request[Any, Any, Any],
        call: ModelCall,
        upstream: Upstream,
        stream: EventStream,
        meter: Meter,
        *,
        model: str,
        most_choices: int,
        with_usage: bool,
        running_usage: bool,
    ) -> None:
        self._request = request
        self._call = call
        self._upstream = upstream
        self._stream = stream
        self._meter = meter
        self._model = raw(model)
        self._most_choices = most_choices
        self._with_usage = with_usage
        self._running_usage = running_usage
        self._id: msgspec.Raw | None = None
        self._first: bytes = b""
        self._last: Fields = {}
        self._texts: list[str] = []
        self._text_events = 0
        self._text_bytes = 0
        self._said = Counts()
        # Choices that have begun, and those of them that have ended.
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    async def start(self) -> None:
        """Take the first event. Raises UpstreamUnavailableError, UpstreamError when it is none that we can send."""
        event = await self._stream.next()
        if event is not None:
            self._first = self._chunk(event)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events for the client. Raises UpstreamUnavailableError when the stream breaks off."""
        yield self._first
        while (event := await self._stream.next()) is not None:
            yield self._chunk(event)
        if not self._stream.done and not (self._begun and self._begun == self._ended):
            raise unavailable(self._upstream.name, "ends a stream before its answer's end")
        await self._count_in_the_end()
        if self._with_usage:
            self._last |= {"choices": raw([]), "model": self._model}
            self._last["usage"] = shown_usage(self._meter, self._said)
            yield _frame(self._last)

    def _chunk(self, event: bytes) -> bytes:
        """Return an event as it is sent on; nothing for what the client did not ask for."""
        chunk = self._decoded(event)
        if not is_null(chunk.get("error")) and "choices" not in chunk:
            raise error_event(self._upstream.name, self._upstream.without_key(event))
        choices = choices_of(self._upstream, chunk)
        usage = chunk.pop("usage", None)
        self._observe(choices, usage)
        if self._id is None:
            self._id = own_id(chunk)
        if chunk.get("id") is None:
            chunk["id"] = self._id
        chunk["model"] = self._model
        self._last = chunk
        if not choices and not is_null(usage):
            return b""  # it comes in our own words, at the end
        if self._with_usage:
            shown = self._running_usage and not is_null(usage)
            chunk = {**chunk, "usage": shown_usage(self._meter, self._said) if shown else NULL}
        return _frame(chunk)

    def _decoded(self, event: bytes) -> Fields:
        try:
            event.decode("utf-8")  # the values are passed on unread
            # A line end between them would be one of our own stream's, and cut the event in two.
            return msgspec.json.decode(event.replace(b"\n", b" "), type=Fields)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unavailable(
                self._upstream.name, f"sends an event that is no JSON object: {error}"
            ) from error

    def _observe(self, choices: list[_Choice], usage: msgspec.Raw | None) -> None:
        for choice in choices:
            number = choice.index if isinstance(choice.index, int) else 0
            self._begun.add(number)
            if len(self._begun) > self._most_choices:
                raise unavailable(self._upstream.name, f"sends more than {self._most_choices} choices")
            if choice.finish_reason is not None:
                self._ended.add(number)
            texts = [text for text in choice.texts() if text]
            if not texts:
                continue
            if any(text.strip() for text in texts):
                self._meter.first_token()
            self._text_events += 1
            self._text_bytes += sum(len(text.encode("utf-8", "replace")) for text in texts)
            # Longer ones are not worth a tokenizer's time, nor the memory: the bytes tell.
            if self._text_bytes > MAX_CHARACTERS:
                self._texts.clear()
            else:
                self._texts += texts
        if not is_null(usage):
            self._said = counts(usage)
        written = streamed(self._text_events, self._text_bytes)
        account(self._call, self._said, written)

    async def _count_in_the_end(self) -> None:
        """Count by a tokenizer what the upstream did not."""
        if self._said.completion_tokens is None and self._texts:
            self._call.completion_tokens = await token_count(self._request, ["".join(self._texts)])


def _frame(chunk: Fields) -> bytes:
    return b"data: " + encode(chunk) + b"\n\n"
