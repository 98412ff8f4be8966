"""Boxes like this one as providers of another: the same answers, the same counts, and one may be pulled out."""

from __future__ import annotations

import json
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.api.upstreams import add_provider, ask, make_router
from tests.gateway.upstream.fake import fake_upstream, streaming
from tests.people import make_person, make_role
from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service

MESSAGES: list[Any] = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture(scope="module")
def front(box: Service) -> Service:
    """Return the box that clients talk to; it has no models of its own."""
    return box


def behind(
    front: Service, *backs: Service, kind: str = "text-generation", pack: str = CHAT, **fields: Any
) -> str:
    """Put boxes behind a new router of ``front``."""
    router, name = make_router(front, kind)
    for back in backs:
        fields = {"type": "appliance", "model_name": pack, "key": back.key, **fields}
        add_provider(front, router, back.base_url, **fields)
    return name


def test_a_chat_is_the_same_as_on_the_box_itself(front: Service, service: Service) -> None:
    model = behind(front, service)
    for streamed in (False, True):
        body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, "logprobs": True}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        here = ask(service, CHAT, **body)
        there = ask(front, model, **body)
        assert there.status_code == 200, there.text
        assert _choices(there) == _choices(here)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert _usage(there)[name] == _usage(here)[name], name


def test_what_the_box_refuses_is_refused_in_its_words(front: Service, service: Service) -> None:
    model = behind(front, service)
    wrong: list[dict[str, Any]] = [{"temperature": 99}, {"max_tokens": 10**9}, {"messages": []}]
    for fields in wrong:
        here, there = ask(service, CHAT, **fields), ask(front, model, **fields)
        assert (there.status_code, there.json()["error"]) == (here.status_code, here.json()["error"])


def test_the_other_kinds_of_models_work_behind_a_box_too(front: Service, service: Service) -> None:
    embedding = behind(front, service, kind="text-embeddings-inference", pack=EMBEDDING)
    reranking = behind(front, service, kind="text-classification", pack=RERANK)
    with front.http as far, service.http as near:
        fields: dict[str, Any] = {"input": ["a cat", "a dog"], "dimensions": 8}
        there = far.post("/v1/embeddings", json={"model": embedding, **fields}).json()
        here = near.post("/v1/embeddings", json={"model": EMBEDDING, **fields}).json()
        assert there["data"] == here["data"]
        assert there["usage"]["prompt_tokens"] == here["usage"]["prompt_tokens"]
        fields = {"query": "cats", "documents": ["a cat", "the moon", "a dog"], "top_n": 2}
        there = far.post("/v1/rerank", json={"model": reranking, **fields}).json()
        here = near.post("/v1/rerank", json={"model": RERANK, **fields}).json()
        assert [each["index"] for each in there["results"]] == [each["index"] for each in here["results"]]
        for one, other in zip(there["results"], here["results"], strict=True):
            assert one["relevance_score"] == pytest.approx(other["relevance_score"])
        assert there["usage"]["prompt_tokens"] == here["usage"]["prompt_tokens"]


@pytest.mark.parametrize("form", ["json", "text", "verbose_json", "srt", "vtt"])
def test_speech_goes_on_from_the_spool(front: Service, service: Service, form: str) -> None:
    model = behind(front, service, kind="automatic-speech-recognition", pack=SPEECH)
    here = _transcribe(service, SPEECH, response_format=form)
    there = _transcribe(front, model, response_format=form)
    assert there.status_code == 200, there.text
    if form in ("json", "verbose_json"):
        one, other = there.json(), here.json()
        assert one.pop("model") == model
        assert other.pop("model") == SPEECH
        for body in (one, other):
            body.pop("id")
            for name in ("carbon", "cost"):
                body["usage"].pop(name)
        assert one == other
    else:
        assert there.text == here.text
        assert there.headers["content-type"] == here.headers["content-type"]


def test_streamed_speech_is_passed_on(front: Service, service: Service) -> None:
    model = behind(front, service, kind="automatic-speech-recognition", pack=SPEECH)
    events = [
        json.loads(line.removeprefix("data: "))
        for line in _transcribe(front, model, stream="true").text.split("\n")
        if line
    ]
    assert [event["type"] for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == _transcribe(service, SPEECH).json()["text"]
    assert events[-1]["usage"]["seconds"] > 0


def test_one_of_two_boxes_is_killed_under_load(front: Service, service: Service, second: Service) -> None:
    """Nobody gets an error before the first byte, and a stream that was cut says so."""
    model = behind(front, service, second, timeout=60)
    killed = threading.Event()
    begun = threading.Semaphore(0)

    def one(number: int) -> tuple[int, list[str]]:
        body = {"model": model, "messages": MESSAGES, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
        with httpx.Client(base_url=front.base_url, headers={"Authorization": f"Bearer {front.key}"}) as http:
            if number % 2:
                answer = http.post("/v1/chat/completions", json=body, timeout=120)
                begun.release()
                return answer.status_code, [] if answer.status_code == 200 else [answer.text]
            with http.stream(
                "POST", "/v1/chat/completions", json={**body, "stream": True}, timeout=120
            ) as answer:
                lines: list[str] = []
                for line in answer.iter_lines():
                    if not lines:
                        begun.release()
                    if line:
                        lines.append(line)
                return answer.status_code, lines

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(one, number) for number in range(20)]
        for _ in range(4):
            assert begun.acquire(timeout=60)
        second.process.send_signal(signal.SIGKILL)
        killed.set()
        results = [future.result() for future in futures]
    assert killed.is_set()
    assert [status for status, _ in results] == [200] * len(results)
    for _, lines in results[::2]:
        assert lines[-1] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        broken = [event for event in events if "error" in event]
        finished = [event for event in events if "choices" in event and event["choices"][0]["finish_reason"]]
        # A whole answer, or one error as the last event.
        assert len(broken) + len(finished) == 1
        assert not broken or events[-1] is broken[0]


def test_what_a_stream_used_is_what_is_recorded(front: Service, service: Service) -> None:
    router, name = make_router(front, cost_completion_tokens=1_000.0)
    add_provider(front, router, service.base_url, type="appliance", model_name=CHAT, key=service.key)
    person = make_person(front, make_role(front), budget=1.0)
    with person.http as http:
        body = {"model": name, "messages": MESSAGES, "max_tokens": 9, "stream": True}
        answer = http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
        cost = events[-1]["usage"]["cost"]
        assert cost == pytest.approx(events[-1]["usage"]["completion_tokens"] / 1000)
        assert http.get("/v1/me/info").json()["budget"] == pytest.approx(1 - cost)


def test_users_of_a_box_in_front_do_not_share_what_the_box_behind_has_cached(front: Service) -> None:
    """One key stands for all of them there: a header tells them apart, the same for each request of one user."""
    seen: dict[str, set[str]] = {}
    with fake_upstream(streaming()) as server:
        router, name = make_router(front)
        add_provider(front, router, server.base_url, type="appliance")
        people = [make_person(front), make_person(front)]
        for person in people * 2:
            # What a client says of itself divides its own scope further, and reaches nobody else's.
            for said in ({}, {"X-Appliance-Cache-Scope": "0" * 32}):
                body = {"model": name, "messages": MESSAGES}
                with person.http as http:
                    assert http.post("/v1/chat/completions", json=body, headers=said).status_code == 200
                scope = server.posted[-1].headers["x-appliance-cache-scope"]
                assert re.fullmatch("[0-9a-f]{32}", scope)
                seen.setdefault(f"{person.id} {said}", set()).add(scope)
    assert [len(scopes) for scopes in seen.values()] == [1] * 4
    assert len(set.union(*seen.values())) == 4


def _choices(answer: httpx.Response) -> Any:
    if answer.headers["content-type"].startswith("application/json"):
        return answer.json()["choices"]
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line)["choices"] for line in lines]


def _usage(answer: httpx.Response) -> Any:
    if answer.headers["content-type"].startswith("application/json"):
        return answer.json()["usage"]
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    return json.loads(lines[-1])["usage"]


def _transcribe(box: Service, model: str, **fields: str) -> httpx.Response:
    with box.http as http:
        return http.post(
            "/v1/audio/transcriptions",
            data={"model": model, **fields},
            files={"file": ("speech.wav", jfk_wav().read_bytes(), "audio/wav")},
        )
