"""Asking the generation routes by hand: bodies in, parsed answers and events out."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.service import CHAT, Service

QUESTION: list[Any] = [{"role": "user", "content": "Name three colours of the rainbow."}]
PROMPT = "The colours of the rainbow are"


def post_chat(service: Service, mount: str = "/v1", **fields: Any) -> httpx.Response:
    """Send a chat request; what is not given is short and simple."""
    with service.http as http:
        body = {"model": CHAT, "messages": QUESTION, "max_tokens": 8, **fields}
        return http.post(f"{mount}/chat/completions", json=body)


def post_completion(service: Service, mount: str = "/v1", **fields: Any) -> httpx.Response:
    """Send a text completion request."""
    with service.http as http:
        body = {"model": CHAT, "prompt": PROMPT, "max_tokens": 8, **fields}
        return http.post(f"{mount}/completions", json=body)


@contextmanager
def unanswered(
    service: Service, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> Iterator[socket.socket]:
    """Send a request and hang up on it at the end of the block, unless something of its answer is read before."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
    host, port = service.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


def chat(service: Service, **fields: Any) -> dict[str, Any]:
    """Return the answer to a chat request, which must succeed."""
    return answer_of(post_chat(service, **fields))


def complete(service: Service, **fields: Any) -> dict[str, Any]:
    """Return the answer to a text completion request, which must succeed."""
    return answer_of(post_completion(service, **fields))


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """Return the body of a response that must be a success."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the events of a stream, which must end with [DONE] and hold no error."""
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not any("error" in event for event in events), events
    return events


def chat_events(service: Service, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed chat."""
    return events_of(post_chat(service, stream=True, **fields))


def completion_events(service: Service, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed text completion."""
    return events_of(post_completion(service, stream=True, **fields))


def content(answer: dict[str, Any], index: int = 0) -> str:
    """Return the text of a chat choice."""
    text: str = answer["choices"][index]["message"]["content"]
    return text


def text(answer: dict[str, Any], index: int = 0) -> str:
    """Return the text of a completion choice."""
    found: str = answer["choices"][index]["text"]
    return found


def joined_chat(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Join a chat stream by choice: content, logprobs entries, finish and stop reason."""
    joined: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            one = joined.setdefault(
                choice["index"], {"content": "", "logprobs": [], "finish_reason": None, "stop_reason": None}
            )
            assert one["finish_reason"] is None, "nothing follows the last chunk of a choice"
            one["content"] += choice["delta"].get("content") or ""
            one["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
            one["finish_reason"] = choice["finish_reason"]
            one["stop_reason"] = choice.get("stop_reason")
    return joined


def joined_completions(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Join a completion stream by choice."""
    joined: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            one = joined.setdefault(
                choice["index"], {"text": "", "logprobs": None, "finish_reason": None, "stop_reason": None}
            )
            assert one["finish_reason"] is None, "nothing follows the last chunk of a choice"
            one["text"] += choice["text"]
            if choice["logprobs"] is not None:
                kept = one["logprobs"] or {key: [] for key in choice["logprobs"]}
                one["logprobs"] = {key: kept[key] + choice["logprobs"][key] for key in kept}
            one["finish_reason"] = choice["finish_reason"]
            one["stop_reason"] = choice["stop_reason"]
    return joined


def tokens_of(service: Service, words: str) -> list[int]:
    """Return the ids of a text in the chat model's vocabulary."""
    with service.http as http:
        body = {"model": CHAT, "prompt": words, "add_special_tokens": False}
        found: list[int] = answer_of(http.post("/tokenize", json=body))["tokens"]
        return found


def tokens(usage: Any) -> tuple[int, int, int]:
    """Return the token counts of a usage, of the official client's or of plain JSON.

    The footprint beside them follows the time that a request took.
    """
    counted = usage if isinstance(usage, dict) else usage.model_dump()
    return counted["prompt_tokens"], counted["completion_tokens"], counted["total_tokens"]
