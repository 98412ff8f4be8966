"""What the clients of the soak test ask for, how they listen, and what must be true of the answers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import model_packs.samples
from tests.service import CHAT

SAMPLE = Path(model_packs.samples.__file__).with_name("english.txt").read_text("utf-8")
WORDS = SAMPLE.split()
# A common beginning of some 500 tokens, as a system message of an application is.
BEGINNING = " ".join(WORDS[:380])
QUESTIONS = [
    "What colour is the sky?",
    "Name three animals.",
    "Repeat: naïve café 🌈 你好",
    "Сколько будет два плюс два?",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
PATTERN = r"[A-Z][a-z]{2,9} (is|was) (not )?[0-9]{1,4}\."
TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "description": "Picks a colour and a count.",
        "parameters": SCHEMA,
    },
}


@dataclass
class Heard:
    """What a stream said, by choice."""

    texts: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, str] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    entries: int = 0
    completion_tokens: int = 0
    pieces: int = 0
    done: bool = False
    error: str = ""

    def take(self, line: str) -> None:
        """Take one ``data:`` line."""
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.error = f"an error event: {event['error']}"
            return
        if event.get("usage"):
            self.completion_tokens = event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            delta = choice["delta"] if "delta" in choice else {"content": choice["text"]}
            index = choice["index"]
            text = delta.get("content") or ""
            self.texts[index] = self.texts.get(index, "") + text
            for call in delta.get("tool_calls") or ():
                self.arguments[index] = self.arguments.get(index, "") + call["function"]["arguments"]
            self.entries += len((choice.get("logprobs") or {}).get("content") or ())
            if choice["finish_reason"]:
                self.finished[index] = choice["finish_reason"]
            self.pieces += bool(text or delta.get("tool_calls") or choice["finish_reason"])


@dataclass
class Asked:
    """A request, and how to tell that its answer is wrong (an empty text when it is not)."""

    kind: str
    path: str
    body: dict[str, Any]
    test: Callable[[Heard], str] | None = None
    # The texts that were answered when nobody else asked; they must not change.
    expected: dict[int, str] | None = None

    def check(self, heard: Heard) -> str:
        """Return what is wrong with an answer."""
        choices = self.body.get("n", 1)
        if sorted(heard.finished) != list(range(choices)):
            return f"choices {sorted(heard.finished)} of {choices} finished"
        if self.expected is not None and heard.texts != self.expected:
            return f"{heard.texts!r}, alone it was {self.expected!r}"
        return self.test(heard) if self.test else ""


def chat(kind: str, question: str, test: Callable[[Heard], str] | None = None, **fields: Any) -> Asked:
    """Return a streamed chat."""
    system = fields.pop("system", None)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    body = {
        "model": CHAT,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    return Asked(kind, "/v1/chat/completions", body, test)


def completion(kind: str, prompt: str, **fields: Any) -> Asked:
    """Return a streamed text completion."""
    body = {
        "model": CHAT,
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    return Asked(kind, "/v1/completions", body)


def known_requests() -> list[Asked]:
    """Return requests whose answers do not change: greedy or seeded, short or long, alone or with choices."""
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 32}
    drawn: dict[str, Any] = {"temperature": 1, "max_tokens": 24}
    middle = " ".join(WORDS[400:900])
    return [
        *(chat("greedy", question, **greedy) for question in QUESTIONS),
        *(chat("greedy, shared", question, system=BEGINNING, **greedy) for question in QUESTIONS),
        completion("greedy, long", middle, **greedy),
        completion("greedy", "Once upon a time", **greedy, ignore_eos=True, repetition_penalty=1.2),
        chat("greedy", QUESTIONS[0], **greedy, stop=["."], logprobs=True, top_logprobs=3),
        *(chat("seeded", question, **drawn, seed=place) for place, question in enumerate(QUESTIONS)),
        chat("seeded", QUESTIONS[1], **drawn, seed=7, system=BEGINNING, top_p=0.9, top_k=50, min_p=0.02),
        chat("seeded, n=2", QUESTIONS[0], **drawn, seed=8, n=2),
        completion(
            "seeded, penalties", "The sea", **drawn, seed=9, presence_penalty=1, frequency_penalty=0.5
        ),
        chat("seeded, constrained", QUESTIONS[1], **drawn, seed=10, guided_regex=PATTERN),
    ]


def some_request(draw: random.Random, known: list[Asked]) -> Asked:
    """Draw the next request of a client."""
    if draw.random() < 0.45:
        return draw.choice(known)
    question = draw.choice(QUESTIONS)
    size = draw.choice([5, 40, 200, 600])
    start = draw.randrange(len(WORDS))
    words = " ".join((WORDS[start:] + WORDS)[:size])
    limit = draw.choice([4, 16, 64])
    makers: list[Callable[[], Asked]] = [
        lambda: chat("regex", question, fits_pattern, guided_regex=PATTERN, max_tokens=60),
        lambda: chat("json", question, fits_schema, guided_json=SCHEMA, max_tokens=200, temperature=1.2),
        lambda: chat(
            "tool",
            question,
            calls_tool,
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=200,
        ),
        lambda: chat("n=2", question, n=2, temperature=1, max_tokens=limit, system=BEGINNING),
        lambda: chat("logprobs", question, counts, logprobs=True, top_logprobs=5, max_tokens=limit),
        lambda: completion("sampled, any length", words, temperature=0.8, max_tokens=limit),
        lambda: completion("echo", words, temperature=0, max_tokens=4, echo=True, logprobs=1),
    ]
    return draw.choice(makers)()


def fits_pattern(heard: Heard) -> str:
    """Say when a text does not match the pattern it was held to."""
    if heard.finished[0] == "stop" and not re.fullmatch(PATTERN, heard.texts[0]):
        return f"{heard.texts[0]!r} does not match"
    return ""


def fits_schema(heard: Heard) -> str:
    """Say when a text is no JSON of the schema."""
    return "" if heard.finished[0] == "length" else _wrong_object(heard.texts[0])


def calls_tool(heard: Heard) -> str:
    """Say when an answer is not one call with arguments of the schema."""
    if heard.finished[0] == "length":
        return ""
    if heard.finished[0] != "tool_calls" or 0 not in heard.arguments:
        return f"no call: {heard.finished[0]} {heard.texts[0]!r}"
    return _wrong_object(heard.arguments[0])


def counts(heard: Heard) -> str:
    """Say when there is not one entry for each token."""
    if heard.entries != heard.completion_tokens:
        return f"{heard.entries} entries for {heard.completion_tokens} tokens"
    return ""


def _wrong_object(text: str) -> str:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return f"{text!r} is no JSON"
    fits = (
        set(value) == {"colour", "count"} and value["colour"] in ("red", "blue") and 0 <= value["count"] <= 9
    )
    return "" if fits else f"{text!r} does not fit the schema"
