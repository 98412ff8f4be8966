"""The answers of chat completions, whole and as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.api.openai.generation.chat_turn import AssistantMessage, Turn, assistant_message
from appliance.api.openai.generation.choices import Choices
from appliance.api.openai.generation.fields import StreamOptions
from appliance.api.openai.generation.logprobs import Vocabulary, chat_logprobs, prompt_logprobs, shaped
from appliance.api.openai.generation.stream_chunks import ChunkWriter, encode
from appliance.api.openai.usage import Meter, Usage
from appliance.engines.generation.contract import Answer, Delta, TokenLogprob

_NULL = b"null"


class ChatChoice(msgspec.Struct, kw_only=True):
    """One choice of an unstreamed answer."""

    index: int
    message: AssistantMessage
    logprobs: msgspec.Raw | None = None
    finish_reason: str
    stop_reason: str | int | msgspec.UnsetType | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """An unstreamed answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: str
    prompt_logprobs: msgspec.Raw | msgspec.UnsetType | None = None
    kv_transfer_params: msgspec.UnsetType | None = None


class ChatShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer to one request shows."""

    head: dict[str, Any]
    vocabulary: Vocabulary
    meter: Meter
    choices: int
    role: str
    # What every choice's content begins with.
    echo: str
    # The best tokens beside each token's log probability; None = no log probabilities.
    logprobs: int | None
    prompt_logprobs: int | None
    # Returns the reader of a new choice, and what the content of one is that only calls tools.
    turn: Callable[[], Turn]
    silent: str | None
    # Whether the fields are shown that vLLM adds to OpenAI's.
    vllm_fields: bool = True

    def logprobs_json(self, entries: Sequence[TokenLogprob]) -> bytes:
        """Return a choice's ``logprobs``."""
        if self.logprobs is None:
            return _NULL
        return encode(chat_logprobs(entries, self.logprobs, self.vocabulary))


async def chat_body(choices: Choices, shape: ChatShape) -> bytes:
    """Wait for all choices and return the answer's JSON. Raises EngineError."""
    answers = await choices.answers()
    shape.meter.count(sum(len(answer.token_ids) for answer in answers))
    tokens = sum(len(answer.logprobs) for answer in answers) + sum(map(len, choices.prompt_logprobs.values()))
    numbers = tokens * (1 + max(shape.logprobs or 0, shape.prompt_logprobs or 0))
    return await shaped(numbers, lambda: _body(answers, choices, shape))


def _body(answers: list[Answer], choices: Choices, shape: ChatShape) -> bytes:
    shown: list[ChatChoice] = []
    logprobs = _NULL
    for index, answer in enumerate(answers):
        if not index or answer is not answers[index - 1]:  # else the same again
            logprobs = shape.logprobs_json(answer.logprobs)
        turn = shape.turn()
        deltas = turn.push(answer.text)
        last, finish_reason = turn.end(answer.finish_reason)
        shown.append(
            ChatChoice(
                index=index,
                message=assistant_message(
                    deltas + last, role=shape.role, prefix=shape.echo, silent=shape.silent
                ),
                logprobs=msgspec.Raw(logprobs),
                finish_reason=finish_reason,
                stop_reason=answer.stop_reason,
            )
        )
        if not shape.vllm_fields:
            shown[-1].stop_reason = shown[-1].message.reasoning_content = msgspec.UNSET
    scores = choices.prompt_logprobs.get(0)
    body = ChatCompletion(
        **shape.head,
        choices=shown,
        usage=shape.meter.usage(),
        prompt_logprobs=None
        if scores is None or shape.prompt_logprobs is None
        else msgspec.Raw(encode(prompt_logprobs(scores, shape.prompt_logprobs, shape.vocabulary))),
    )
    if not shape.vllm_fields:
        body.prompt_logprobs = body.kv_transfer_params = msgspec.UNSET
    return encode(body)


async def chat_events(
    choices: Choices, shape: ChatShape, options: StreamOptions | None
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream: roles, echo, what is said, and the usage when asked for. Raises EngineError."""
    head = {**shape.head, "object": "chat.completion.chunk"}
    writer = ChunkWriter(head, shape.meter, options)
    streams = [_ChoiceStream(index, shape, writer) for index in range(shape.choices)]
    yield b"".join(stream.plain({"role": shape.role, "content": ""}) for stream in streams)
    if shape.echo:
        yield b"".join(stream.plain({"content": shape.echo}) for stream in streams)
    async with aclosing(choices.batches()) as batches:
        async for batch in batches:
            frames: list[bytes] = []
            for index, delta in batch:
                frames += await streams[index].frames(delta)
            if frames:
                yield b"".join(frames)
    yield writer.last()


class _ChoiceStream:
    """The chunks of one choice."""

    def __init__(self, index: int, shape: ChatShape, writer: ChunkWriter) -> None:
        self._start = b'{"index":%d,"delta":' % index
        self._shape = shape
        self._writer = writer
        self._turn = shape.turn()
        # Those of tokens that no chunk has shown yet.
        self._logprobs: list[TokenLogprob] = []

    def plain(self, delta: dict[str, Any]) -> bytes:
        """Return a chunk that no token made."""
        return self._chunk(delta, _NULL)

    async def frames(self, delta: Delta) -> list[bytes]:
        """Return the chunks for what was produced; none when nothing can be shown yet."""
        shape = self._shape
        self._writer.count(len(delta.token_ids))
        if shape.logprobs is not None:
            self._logprobs += delta.logprobs
        deltas = self._turn.push(delta.text)
        if delta.finish_reason is None:
            if not deltas:
                return []
            logprobs = await self._shown_logprobs()
            return [self._chunk(each, _NULL if place else logprobs) for place, each in enumerate(deltas)]
        last, reason = self._turn.end(delta.finish_reason)
        deltas += last
        if not deltas or "content" not in deltas[-1]:
            deltas.append({})
        ending = b',"finish_reason":' + encode(reason)
        if shape.vllm_fields:
            ending += b',"stop_reason":' + encode(delta.stop_reason)
        logprobs = await self._shown_logprobs()
        return [
            self._chunk(
                each,
                _NULL if place else logprobs,
                ending if place == len(deltas) - 1 else b',"finish_reason":null',
            )
            for place, each in enumerate(deltas)
        ]

    async def _shown_logprobs(self) -> bytes:
        entries, self._logprobs = self._logprobs, []
        if self._shape.logprobs is None:
            return _NULL
        numbers = len(entries) * (self._shape.logprobs + 1)
        return await shaped(numbers, lambda: self._shape.logprobs_json(entries))

    def _chunk(
        self, delta: dict[str, Any], logprobs: bytes, ending: bytes = b',"finish_reason":null'
    ) -> bytes:
        return self._writer.chunk(self._start, encode(delta), b',"logprobs":', logprobs, ending, b"}")
