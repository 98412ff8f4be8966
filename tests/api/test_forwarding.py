"""Requests to routers whose providers are other servers: what goes there, what comes back."""

from __future__ import annotations

import base64
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.asking import events_of
from tests.api.upstreams import ask, routed
from tests.gateway.upstream.fake import (
    KEY,
    MODEL,
    Exchange,
    FakeUpstream,
    Script,
    chat_answer,
    chunk,
    fake_upstream,
    streaming,
    usage,
)
from tests.people import make_person
from tests.service import Service


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    """Start one scripted server; each test gives it its script."""
    with fake_upstream(streaming()) as server:
        yield server


@pytest.fixture(scope="module")
def model(box: Service, upstream: FakeUpstream) -> str:
    """Name a router of that server."""
    return routed(box, upstream, key=KEY, timeout=3)


@pytest.fixture(autouse=True)
def _forget(upstream: FakeUpstream) -> None:
    upstream.received.clear()
    upstream.seen.clear()
    upstream.script = streaming()


# What goes there.


def test_the_body_goes_as_it_came_but_for_the_model(box: Service, model: str, upstream: FakeUpstream) -> None:
    fields: dict[str, Any] = {"temperature": 0.25, "ignore_eos": True, "new_field": {"a": [1, 2.50]}}
    answer = ask(box, model, **fields)
    assert answer.status_code == 200, answer.text
    sent = upstream.posted[-1]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    messages = [{"role": "user", "content": "Count to three."}]
    assert sent.json == {"model": MODEL, "messages": messages, **fields}


def test_what_points_at_other_requests_of_a_server_stays_here(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    """All users of the box are one client to it, which may name what it holds of any of them."""
    answer = ask(box, model, kv_transfer_params={"do_remote_prefill": True}, id_slot=0, new_field=1)
    assert answer.status_code == 200, answer.text
    assert set(upstream.posted[-1].json) == {"model", "messages", "new_field"}


def test_numbers_keep_every_digit(box: Service, model: str, upstream: FakeUpstream) -> None:
    with box.http as http:
        body = '{"model":"%s","messages":[{"role":"user","content":"x"}],"big":123456789012345678901234567890,"f":1.10}'
        answer = http.post("/v1/chat/completions", content=body % model)
    assert answer.status_code == 200
    assert b'"big":123456789012345678901234567890' in upstream.posted[-1].body
    assert b'"f":1.10' in upstream.posted[-1].body


def test_opengatellms_mount_sends_every_declared_field(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    person = make_person(box)
    with person.http as http:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "tools": []}
        answer = http.post("/opengatellm/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert upstream.posted[-1].json == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 3,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "logprobs": False,
        "top_logprobs": None,
        "presence_penalty": 0.0,
        "max_completion_tokens": None,
        "n": 1,
        "response_format": None,
        "seed": None,
        "stop": [],
        "stream": False,
        "stream_options": None,
        "temperature": 0.7,
        "top_p": 1,
        "tools": None,
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "user": None,
    }


def test_mistral_gets_its_own_fields_only(box: Service, upstream: FakeUpstream) -> None:
    name = routed(box, upstream, type="mistral")
    fields: dict[str, Any] = {
        "seed": 7,
        "max_completion_tokens": 5,
        "logit_bias": None,
        "logprobs": True,
        "user": "u",
        "top_p": 0.5,
    }
    assert ask(box, name, **fields).status_code == 200
    sent = upstream.posted[-1].json
    assert sent.pop("messages")
    assert sent == {"model": MODEL, "random_seed": 7, "max_tokens": 5, "top_p": 0.5}


def test_the_usage_of_streams_is_asked_for_where_the_family_has_it(
    box: Service, upstream: FakeUpstream
) -> None:
    for kind, expected in (
        ("vllm", {"include_usage": True}),
        ("openai", {"include_usage": True}),
        ("mistral", None),
    ):
        name = routed(box, upstream, type=kind)
        events_of(ask(box, name, stream=True))
        assert upstream.posted[-1].json.get("stream_options") == expected, kind


# What comes back.


def test_an_answer_has_the_clients_name_and_the_upstreams_counts(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    extra: dict[str, Any] = {"service_tier": "flex", "prompt_logprobs": None}
    upstream.script = lambda exchange: exchange.answer(chat_answer(**extra))
    answer = ask(box, model).json()
    assert answer["model"] == model
    assert answer["id"] == "up-1"
    assert answer["service_tier"] == "flex"
    assert answer["choices"] == chat_answer()["choices"]
    shown = answer["usage"]
    assert (shown["prompt_tokens"], shown["completion_tokens"], shown["total_tokens"]) == (11, 3, 14)
    assert set(shown) >= {"cost", "carbon", "requests"}
    strict = ask(box, model, "/compressa/v1").json()["usage"]
    assert strict["total_tokens"] == 14
    assert "cost" not in strict


def test_an_answer_without_an_id_gets_one(box: Service, model: str, upstream: FakeUpstream) -> None:
    upstream.script = lambda exchange: exchange.answer(chat_answer(id=None))
    answer = ask(box, model).json()
    assert answer["id"].startswith("request-")
    assert len(answer["id"]) == len("request-") + 32


@pytest.mark.parametrize(
    "said",
    [None, {}, [], usage(-1, -1), usage("7", 1.5), usage(10**15, 2**70), usage(True, False), usage(0, 0)],
)
def test_counts_that_cannot_be_are_ours(box: Service, model: str, upstream: FakeUpstream, said: Any) -> None:
    upstream.script = lambda exchange: exchange.answer(chat_answer("a text of some length", usage=said))
    shown = ask(box, model).json()["usage"]
    assert shown["prompt_tokens"] == 4  # "Count to three." has 15 bytes
    assert shown["completion_tokens"] == 6


def test_a_stream_comes_as_it_is_made(box: Service, upstream: FakeUpstream) -> None:
    read = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for text in "abcd":
            exchange.event(chunk(text))
            if not read.acquire(timeout=30):  # the next one is made when the client has this one
                return exchange.hang_up()
        exchange.event(chunk(finish="stop"))
        return exchange.end_stream()

    upstream.script = script
    model = routed(box, upstream, timeout=60)
    texts = []
    with box.http as http:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if '"content":' in line:
                    texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"])
                    read.release()
    assert texts == list("abcd")


def test_a_stream_names_the_clients_model_and_shows_usage_only_when_asked(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    plain = events_of(ask(box, model, stream=True))
    assert {event["model"] for event in plain} == {model}
    assert not any("usage" in event for event in plain)
    assert all(event["choices"] for event in plain)
    *before, last = events_of(ask(box, model, stream=True, stream_options={"include_usage": True}))
    assert [event["usage"] for event in before] == [None] * len(before)
    assert last["choices"] == []
    assert last["id"] == "up-1"
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (11, 3)
    assert "cost" in last["usage"]
    texts = [event["choices"][0]["delta"].get("content") for event in plain]
    assert "".join(text for text in texts if text) == "one two three"


def test_a_stream_without_usage_is_counted_here(box: Service, model: str, upstream: FakeUpstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for text in ("one", " two", " three"):
            exchange.event(chunk(text))
        exchange.event(chunk(finish="stop"))
        exchange.end_stream()  # and no [DONE]

    upstream.script = script
    last = events_of(ask(box, model, stream=True, stream_options={"include_usage": True}))[-1]
    assert last["usage"]["completion_tokens"] == 4  # 13 bytes


def test_of_an_endless_stream_nothing_is_kept(box: Service, model: str, upstream: FakeUpstream) -> None:
    """40 MB of text without a count: the service needs no 40 MB more for it, and counts by its size."""
    text, events = "word " * 20_000, 400

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for _ in range(events):
            exchange.event(chunk(text))
        exchange.event(chunk(finish="stop"))
        exchange.end_stream()

    upstream.script = script
    before = _resident(box)
    last = events_of(ask(box, model, stream=True, stream_options={"include_usage": True}))[-1]
    assert last["usage"]["completion_tokens"] == events * len(text) // 4
    assert _resident(box) - before < 25 << 20


def test_choices_without_end_are_a_failure_of_the_provider(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for number in range(5000):
            choice = {"index": number, "delta": {"content": "x"}, "finish_reason": "stop"}
            exchange.event(chunk(choices=[choice]))
        exchange.event("[DONE]")
        exchange.end_stream()

    upstream.script = script
    answer = ask(box, model, stream=True)
    assert "Model is temporarily unavailable" in answer.text.split("\n\n")[-3]


def _resident(box: Service) -> int:
    """Return the bytes of memory that the service's process has now."""
    pages = Path(f"/proc/{box.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_noise_between_events_and_cut_lines_do_not_matter(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        text = ": OPENROUTER PROCESSING\r\n\r\nevent: message\r\nid: 1\r\n"
        text += "data:" + json.dumps(chunk("héllo"), ensure_ascii=False) + "\r\n\r\n"
        text += "data: " + json.dumps(chunk(finish="stop")) + "\r\n\r\ndata: [DONE]\r\n\r\n"
        for byte in text.encode():
            exchange.piece(bytes([byte]))
        exchange.end_stream()

    upstream.script = script
    events = events_of(ask(box, model, stream=True))
    assert [event["choices"][0]["delta"].get("content") for event in events] == ["héllo", None]


def test_line_ends_within_an_upstreams_json_do_not_end_our_event(
    box: Service, model: str, upstream: FakeUpstream
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for payload in (chunk("one"), chunk(finish="stop")):
            # An event may have its data on several lines: JSON that is indented is the same JSON.
            lines = json.dumps(payload | {"more": [{"a": [1]}]}, indent=1).replace("[", "[\n\n").split("\n")
            exchange.piece(b"".join(b"data: " + line.encode() + b"\n" for line in lines) + b"\n")
        exchange.event("[DONE]")
        exchange.end_stream()

    upstream.script = script
    answer = ask(box, model, stream=True)
    events = events_of(answer)
    assert [event["choices"][0]["delta"].get("content") for event in events] == ["one", None]
    assert all(line.startswith("data: ") for line in answer.text.split("\n") if line)


def test_text_completions_go_the_same_way(box: Service, model: str, upstream: FakeUpstream) -> None:
    answer = {
        "id": "c",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "abc"}],
        "usage": usage(5, 1),
    }
    upstream.script = lambda exchange: exchange.answer(answer)
    with box.http as http:
        found = http.post("/v1/completions", json={"model": model, "prompt": ["a", "b"], "echo": False})
    assert found.status_code == 200, found.text
    assert upstream.posted[-1].path == "/v1/completions"
    assert found.json()["usage"]["prompt_tokens"] == 5
    assert found.json()["model"] == model


# Embeddings.


def vectors(exchange: Exchange) -> None:
    items = exchange.json["input"]
    count = len(items) if isinstance(items, list) else 1
    data = [{"object": "embedding", "index": place, "embedding": [0.5, -1.25]} for place in range(count)]
    exchange.answer({"object": "list", "model": MODEL, "data": data, "usage": usage(9, 0), "extra": 1})


def test_embeddings_are_forwarded_and_keep_what_else_the_upstream_says(
    box: Service, upstream: FakeUpstream
) -> None:
    upstream.script = vectors
    name = routed(box, upstream, kind="text-embeddings-inference")
    with box.http as http:
        answer = http.post("/v1/embeddings", json={"model": name, "input": ["a", "b"], "own": 1}).json()
    assert answer["model"] == name
    assert [each["embedding"] for each in answer["data"]] == [[0.5, -1.25]] * 2
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 9
    assert answer["extra"] == 1
    assert upstream.posted[-1].json == {"model": MODEL, "input": ["a", "b"], "own": 1}


def test_albert_knows_no_base64_but_the_client_gets_it(box: Service, upstream: FakeUpstream) -> None:
    upstream.script = vectors
    name = routed(box, upstream, kind="text-embeddings-inference", type="albert")
    found = box.openai.embeddings.create(model=name, input="a", encoding_format="base64")
    assert upstream.posted[-1].json["encoding_format"] == "float"
    text: Any = found.data[0].embedding
    assert struct.unpack("<2f", base64.b64decode(text)) == (0.5, -1.25)


def test_an_embedding_answer_without_vectors_is_a_failure_of_the_provider(
    box: Service, upstream: FakeUpstream
) -> None:
    upstream.script = vectors
    name = routed(box, upstream, kind="text-embeddings-inference")
    upstream.script = lambda exchange: exchange.answer({"data": "x"})
    with box.http as http:
        assert http.post("/v1/embeddings", json={"model": name, "input": "a"}).status_code == 503


# Reranking.


def test_reranking_by_tei_is_answered_like_our_own(box: Service, upstream: FakeUpstream) -> None:
    name = routed(box, upstream, kind="text-classification", type="tei")
    upstream.script = lambda exchange: exchange.answer(
        [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.2}]
    )
    with box.http as http:
        answer = http.post("/v1/rerank", json={"model": name, "query": "q", "documents": ["a", "b"]})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [each["index"] for each in results] == [1, 0]
    assert [each["relevance_score"] for each in results] == pytest.approx([0.9, 0.2])


def test_records_name_the_route_however_many_slashes_the_path_had(box: Service, model: str) -> None:
    person = make_person(box)
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    paths = ("/v1/chat/completions", "//v1///chat/completions", "/compressa/v1//chat/completions")
    with person.http as http:
        for path in paths:
            answer = http.post(f"{box.base_url}{path}", json=body)
            assert answer.status_code == 200, answer.text
        records = http.get("/v1/me/usage").json()["data"]
    assert [each["endpoint"] for each in records] == ["/v1/chat/completions"] * len(paths)


def test_scripts_are_what_they_say() -> None:
    """The fake itself: a stream that is asked for usage has it."""
    script: Script = streaming()
    with fake_upstream(script) as server:
        body = {"stream": True, "stream_options": {"include_usage": True}}
        answer = httpx.post(f"{server.base_url}/v1/chat/completions", json=body, trust_env=False)
    assert '"total_tokens": 14' in answer.text
