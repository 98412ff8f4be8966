"""The answers of text completions, whole and as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.api.openai.generation.choices import Choices
from appliance.api.openai.generation.completion_choice import Echo, GrowingChoice, Showing, echo_of
from appliance.api.openai.generation.fields import StreamOptions
from appliance.api.openai.generation.logprobs import CompletionLogprobs, prompt_logprobs, shaped
from appliance.api.openai.generation.prompts import Prompt
from appliance.api.openai.generation.stream_chunks import ChunkWriter, encode
from appliance.api.openai.usage import Meter, Usage
from appliance.engines.generation.contract import Answer


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One choice: a completion of one prompt. ``logprobs`` has the form of CompletionLogprobs."""

    index: int
    text: str
    logprobs: msgspec.Raw | CompletionLogprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    prompt_logprobs: msgspec.Raw | None = None


class Completion(msgspec.Struct, kw_only=True):
    """An unstreamed answer."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer to one request shows."""

    head: dict[str, Any]
    prompts: list[Prompt]
    meter: Meter
    # The prompts' texts when the answer repeats them.
    echoes: list[str] | None
    choices_per_prompt: int
    showing: Showing
    prompt_logprobs: int | None

    def growing(self, index: int, choices: Choices) -> GrowingChoice:
        """Return the choice of that index before anything was produced for it."""
        place = index // self.choices_per_prompt
        echo: Echo | None = None
        if self.echoes is not None:
            scores = choices.prompt_logprobs.get(place)
            echo = echo_of(self.prompts[place], self.echoes[place], scores, self.showing.vocabulary)
        return GrowingChoice(self.showing, echo)


async def completion_body(choices: Choices, shape: Shape) -> bytes:
    """Wait for all choices and return the answer's JSON. Raises EngineError."""
    answers = await choices.answers()
    shape.meter.count(sum(len(answer.token_ids) for answer in answers))
    tokens = sum(len(answer.logprobs) for answer in answers) + sum(map(len, choices.prompt_logprobs.values()))
    numbers = tokens * (1 + max(shape.showing.logprobs or 0, shape.prompt_logprobs or 0))
    return await shaped(numbers, lambda: _body(answers, choices, shape))


def _body(answers: list[Answer], choices: Choices, shape: Shape) -> bytes:
    prompt_scores = {
        place: msgspec.Raw(encode(prompt_logprobs(scores, shape.prompt_logprobs, shape.showing.vocabulary)))
        for place, scores in choices.prompt_logprobs.items()
        if shape.prompt_logprobs is not None
    }
    shown: list[CompletionChoice] = []
    for index, answer in enumerate(answers):
        place = index // shape.choices_per_prompt
        if index % shape.choices_per_prompt and answer is answers[index - 1]:  # the same n times
            shown.append(msgspec.structs.replace(shown[-1], index=index))
            continue
        choice = shape.growing(index, choices)
        choice.take(answer.text, answer.token_ids, answer.logprobs)
        text, logprobs = choice.shown()
        shown.append(
            CompletionChoice(
                index=index,
                text=text,
                logprobs=None if logprobs is None else msgspec.Raw(encode(logprobs)),
                finish_reason=answer.finish_reason,
                stop_reason=answer.stop_reason,
                prompt_logprobs=prompt_scores.get(place),
            )
        )
    return encode(Completion(**shape.head, choices=shown, usage=shape.meter.usage()))


async def completion_events(
    choices: Choices, shape: Shape, options: StreamOptions | None
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream; what is known only as a whole is one event. Raises EngineError."""
    if not choices.streamed:
        yield b"".join((b"data: ", await completion_body(choices, shape), b"\n\n"))
        return
    writer = ChunkWriter({**shape.head, "object": "text_completion"}, shape.meter, options)
    growing: dict[int, GrowingChoice] = {}
    async with aclosing(choices.batches()) as batches:
        async for batch in batches:
            frames: list[bytes] = []
            for index, delta in batch:
                choice = growing.get(index)
                if choice is None:
                    choice = growing[index] = shape.growing(index, choices)
                choice.take(delta.text, delta.token_ids, delta.logprobs)
                writer.count(len(delta.token_ids))
                if not (delta.text or delta.finish_reason):
                    continue  # nothing to show yet: it goes with what comes next
                text, logprobs = await shaped(choice.numbers, choice.shown)
                pieces = (
                    b'{"index":%d,"text":' % index,
                    encode(text),
                    b',"logprobs":',
                    encode(logprobs),
                    b',"finish_reason":',
                    encode(delta.finish_reason),
                    b',"stop_reason":',
                    encode(delta.stop_reason),
                    b"}",
                )
                frames.append(writer.chunk(*pieces))
            if frames:
                yield b"".join(frames)
    yield writer.last()
