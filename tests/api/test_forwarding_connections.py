"""Connections to other servers: kept, closed from either side, and nothing of one user's in another's."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.api.asking import unanswered
from tests.api.upstreams import ask, routed
from tests.gateway.upstream.fake import (
    Exchange,
    FakeUpstream,
    Script,
    chat_answer,
    chunk,
    streaming,
)
from tests.service import Service

# What some servers say on a connection that rests, before they close it.
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


def test_what_a_server_says_to_remember_does_not_go_with_the_next_users_request(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream)
    upstream.script = lambda exchange: exchange.answer(chat_answer(), Set_Cookie="session=first; Path=/")
    for _ in range(2):
        assert ask(box, model).status_code == 200
    assert not any("cookie" in {name.lower() for name in each.headers} for each in upstream.posted)


@pytest.mark.parametrize("streamed", [False, True])
def test_when_the_client_leaves_the_upstream_is_hung_up_on(
    box: Service, upstream: FakeUpstream, streamed: bool
) -> None:
    model = routed(box, upstream)
    left = threading.Event()
    begun = threading.Event()

    def script(exchange: Exchange) -> None:
        if streamed:
            exchange.begin_stream()
            exchange.event(chunk("a"))
        begun.set()
        if exchange.client_left(30):
            left.set()

    upstream.script = script
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": streamed}
    with unanswered(box, body) as connection:
        assert begun.wait(30)
        if streamed:
            assert connection.recv(100)
    assert left.wait(30)


def once_per_connection(script: Script) -> Script:
    """Return a script that answers the first request of a connection, and hangs up on the next one unanswered.

    So a client sees it whose request crosses with the end of a connection that was idle for too long.
    """
    served: set[int] = set()

    def answer(exchange: Exchange) -> None:
        if id(exchange.handler) in served:
            exchange.hang_up()
            return
        served.add(id(exchange.handler))
        handlers.append(exchange.handler)
        script(exchange)

    handlers: list[Any] = []  # kept, lest their ids come again
    return answer


@pytest.mark.parametrize("streamed", [False, True])
def test_a_kept_connection_that_is_being_closed_costs_no_request(
    box: Service, upstream: FakeUpstream, streamed: bool
) -> None:
    model = routed(box, upstream)
    upstream.script = once_per_connection(streaming())
    answers = [ask(box, model, stream=streamed) for _ in range(4)]
    assert [each.status_code for each in answers] == [200] * 4
    assert all("three" in each.text for each in answers)


def test_an_upload_goes_again_where_a_kept_connection_is_being_closed(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream, kind="automatic-speech-recognition")
    upstream.script = once_per_connection(lambda exchange: exchange.answer({"text": "hello"}))
    audio = b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(256)) * 1500
    for _ in range(4):
        with box.http as http:
            answer = http.post(
                "/v1/audio/transcriptions", data={"model": model}, files={"file": ("a.wav", audio)}
            )
        assert (answer.status_code, answer.json()["text"]) == (200, "hello")
    assert all(audio in each.body for each in upstream.posted)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reader_waits", [False, True])
def test_an_answer_whose_chunks_go_wrong_fails_at_once(
    box: Service, upstream: FakeUpstream, streamed: bool, reader_waits: bool
) -> None:
    model = routed(box, upstream, timeout=100)

    def script(exchange: Exchange) -> None:
        exchange.begin_stream("text/event-stream" if streamed else "application/json")
        exchange.event(chunk("one"))
        if reader_waits:
            time.sleep(0.2)
        exchange.handler.wfile.write(b"no size\r\n")
        exchange.client_left(20)

    upstream.script = script
    with box.http as http:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": streamed}
        answer = http.post("/v1/chat/completions", json=body, timeout=20)
    assert answer.status_code in ((200, 503) if streamed else (503,))
    assert "Model is too busy (RemoteProtocolError)" in answer.text
    assert "Traceback" not in box.log.read_text()


def test_a_request_that_ends_every_connection_is_sent_once_to_a_new_one(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream)
    assert ask(box, model).status_code == 200  # its connection is kept
    upstream.received.clear()
    upstream.script = Exchange.hang_up
    assert ask(box, model).status_code == 503
    assert len(upstream.posted) == 2


@pytest.mark.parametrize(("stray", "pause"), [(TOO_LATE, 0), (TOO_LATE, 0.2), (TOO_LATE[:12], 0.2)])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_comes_after_an_answer_is_not_taken_for_that_of_the_next_request(
    box: Service, upstream: FakeUpstream, stray: bytes, streamed: bool, pause: float
) -> None:
    model = routed(box, upstream)
    closed: queue.Queue[bool] = queue.Queue()

    def script(exchange: Exchange) -> None:
        streaming()(exchange)
        time.sleep(pause)
        exchange.handler.wfile.write(stray)
        closed.put(exchange.client_left(3))  # sooner than a connection that rests is closed

    upstream.script = script
    for _ in range(2):
        answer = ask(box, model, stream=streamed)
        assert (answer.status_code, "three" in answer.text) == (200, True)
        assert closed.get(timeout=20)


def test_an_answer_that_nobody_asked_for_goes_to_nobody(box: Service, upstream: FakeUpstream) -> None:
    model = routed(box, upstream)
    numbers = itertools.count(1)
    sent: queue.Queue[None] = queue.Queue()

    def script(exchange: Exchange) -> None:
        exchange.answer(chat_answer(f"answer {next(numbers)}"))
        time.sleep(0.1)
        try:
            exchange.answer(chat_answer("for another user"))
            exchange.client_left(1)
        finally:
            sent.put(None)

    upstream.script = script
    texts = []
    for _ in range(3):
        texts.append(ask(box, model).json()["choices"][0]["message"]["content"])
        sent.get(timeout=20)
    assert texts == ["answer 1", "answer 2", "answer 3"]


@pytest.mark.parametrize(("heads", "status"), [(3, 200), (5000, 503)])
def test_a_server_that_announces_an_answer_without_end_is_hung_up_on(
    box: Service, upstream: FakeUpstream, heads: int, status: int
) -> None:
    """Some servers do so now and then while they work; each such head is read, so a flood would keep the box busy."""
    model = routed(box, upstream)
    ended: queue.Queue[None] = queue.Queue()

    def script(exchange: Exchange) -> None:
        try:
            for _ in range(heads):
                exchange.handler.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            streaming()(exchange)
        finally:
            ended.put(None)

    upstream.script = script
    assert ask(box, model).status_code == status
    ended.get(timeout=20)


@pytest.mark.parametrize("line", [b"\n", b": working\n"])
@pytest.mark.parametrize(("lines", "status"), [(1000, 200), (100_000, 503)])
def test_a_server_that_sends_lines_without_an_event_is_hung_up_on(
    box: Service, upstream: FakeUpstream, line: bytes, lines: int, status: int
) -> None:
    """Each of them is read, so a flood would keep the box busy."""
    model = routed(box, upstream)
    ended: queue.Queue[None] = queue.Queue()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        try:
            for _ in range(lines // 100):
                exchange.piece(line * 100)
            exchange.event(chunk("a"))
            exchange.event("[DONE]")
            exchange.end_stream()
        except OSError:
            pass
        finally:
            ended.put(None)

    upstream.script = script
    assert ask(box, model, stream=True).status_code == status
    ended.get(timeout=20)


def test_lines_without_end_after_an_event_are_an_error_in_the_stream(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream)
    read = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.event(chunk("a"))
        assert read.wait(20)
        with suppress(OSError):
            for _ in range(1000):
                exchange.piece(b"\n" * 100)
            exchange.event("[DONE]")
            exchange.end_stream()

    upstream.script = script
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with box.http as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert '"a"' in next(lines)
        read.set()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    assert [set(event) for event in events] == [{"error"}]


def test_lines_without_end_behind_a_stream_that_is_done_take_nothing_from_it(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream)

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.event(chunk("a"))
        exchange.event("[DONE]")
        time.sleep(0.2)  # so that they come while the end of the answer is waited for
        with suppress(OSError):
            for _ in range(1000):
                exchange.piece(b"\n" * 100)
            exchange.end_stream()

    upstream.script = script
    before = len(box.log.read_text())
    answer = ask(box, model, stream=True)
    assert (answer.status_code, '"error"' in answer.text) == (200, False)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "Traceback" not in box.log.read_text()[before:]
