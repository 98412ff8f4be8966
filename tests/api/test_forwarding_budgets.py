"""Budgets of requests that other servers answer: reserved by what they count, never overspent."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.upstreams import add_provider, ask, make_router
from tests.gateway.upstream.fake import (
    UNSIZED,
    Exchange,
    FakeUpstream,
    Script,
    chat_answer,
    chunk,
    streaming,
    usage,
)
from tests.people import Person, make_person, make_role
from tests.service import Service

TEXT = [{"role": "user", "content": "Count to three."}]


def test_the_budget_shortens_what_is_asked_of_the_upstream(box: Service, upstream: FakeUpstream) -> None:
    router, name = make_router(box, cost_prompt_tokens=1.0, cost_completion_tokens=10.0)
    add_provider(box, router, upstream.base_url)
    person = make_person(box, make_role(box), budget=0.0011)
    with person.http as http:
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "Count to three."}]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        # 1,100 millionths, less 4 tokens of prompt and the 64 that a template may add.
        assert upstream.posted[-1].json["max_tokens"] == 103
        http.post("/v1/chat/completions", json={**body, "max_tokens": 5})
        assert upstream.posted[-1].json["max_tokens"] == 5
        assert answer.json()["usage"]["cost"] == pytest.approx(11e-6 + 30e-6)


def test_a_budget_for_fifty_is_not_overspent_where_the_upstream_counts_more_than_was_guessed(
    box: Service, upstream: FakeUpstream
) -> None:
    counted = usage(41, 4)
    upstream.script = lambda exchange: exchange.answer({**chat_answer(), "usage": counted})
    router, name = make_router(box, cost_prompt_tokens=1000.0, cost_completion_tokens=2000.0)
    add_provider(box, router, upstream.base_url)
    one = 41e-3 + 8e-3
    person = make_person(box, make_role(box), budget=round(50 * one, 6))
    body = {"model": name, "messages": [{"role": "user", "content": "Count to three."}], "max_tokens": 4}
    with person.http as http, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/chat/completions", json=body), range(200)))
        left = http.get("/v1/me/info").json()["budget"]
    spent = sum(each.json()["usage"]["cost"] for each in answers if each.status_code == 200)
    assert set(Counter(each.status_code for each in answers)) == {200, 429}
    assert spent <= 50 * one + 1e-9
    assert left == pytest.approx(50 * one - spent)
    assert spent >= 45 * one, "and nearly all of it can be spent"


def test_documents_at_once_do_not_overspend_a_budget(box: Service, upstream: FakeUpstream) -> None:
    def script(exchange: Exchange) -> None:
        time.sleep(0.05)  # so that they overlap
        exchange.answer({"pages": [{"index": 0, "markdown": "x"}], "usage": usage(10, 20)})

    upstream.script = script
    router, name = make_router(box, "image-to-text", cost_prompt_tokens=1000.0, cost_completion_tokens=1000.0)
    add_provider(box, router, upstream.base_url, type="mistral")
    person = make_person(box, make_role(box), budget=50 * 0.03)
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    with person.http as http, ThreadPoolExecutor(40) as pool:
        body = {"model": name, "document": document}
        answers = list(pool.map(lambda _: http.post("/v1/ocr", json=body), range(200)))
        left = http.get("/v1/me/info").json()["budget"]
    spent = sum(each.json()["usage"]["cost"] for each in answers if each.status_code == 200)
    assert {each.status_code for each in answers} <= {200, 400}
    assert 0 < spent <= 50 * 0.03 + 1e-9
    assert left == pytest.approx(50 * 0.03 - spent)


@pytest.mark.parametrize(("pages", "held"), [(None, 1), ([3], 1), (["0-3"], 4)])
def test_what_a_document_may_cost_is_held_by_the_page(
    box: Service, upstream: FakeUpstream, pages: Any, held: int
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def script(exchange: Exchange) -> None:
        reading.set()
        go_on.wait(20)
        exchange.answer({"pages": [{"index": 0, "markdown": "x"}]})

    router, name = make_router(box, "image-to-text", cost_completion_tokens=1.0)
    add_provider(box, router, upstream.base_url, type="mistral")
    # For two such documents, less a token: of the second one some is paid for, of a third one nothing.
    person = make_person(box, make_role(box), budget=round((2 * held * 8192 - 1) / 1e6, 6))
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    upstream.script = script
    with person.http as http, ThreadPoolExecutor(2) as pool:
        body = {"model": name, "document": document, "pages": pages}
        running = []
        for _ in range(2):
            running.append(pool.submit(http.post, "/v1/ocr", json=body))
            assert reading.wait(10)
            reading.clear()
        refused = http.post("/v1/ocr", json=body)
        go_on.set()
        assert [each.result().status_code for each in running] == [200, 200]
        assert refused.status_code == 400
        assert http.post("/v1/ocr", json=body).status_code == 200


def test_a_spent_budget_reaches_no_upstream(box: Service, upstream: FakeUpstream) -> None:
    router, name = make_router(box, cost_completion_tokens=10.0)
    add_provider(box, router, upstream.base_url)
    person = make_person(box, make_role(box), budget=0)
    with person.http as http:
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "x"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 429
        assert http.post("/opengatellm/v1/chat/completions", json=body).status_code == 400
    assert upstream.posted == []


def test_a_budget_bounds_answers_whose_length_nobody_knows(box: Service, upstream: FakeUpstream) -> None:
    """Neither the request nor the server's list says how long an answer may be: what is reserved is the bound."""
    router, name = make_router(box, cost_completion_tokens=1.0)
    add_provider(box, router, upstream.base_url, model_name=UNSIZED)
    role = make_role(box)
    ample, endless = make_person(box, role, budget=100), make_person(box, role)
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    with ample.http as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert upstream.posted[-1].json["max_tokens"] == 8192
    with endless.http as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert "max_tokens" not in upstream.posted[-1].json


def test_every_candidate_is_reserved_for_not_only_those_shown(box: Service, upstream: FakeUpstream) -> None:
    router, name = make_router(box, cost_completion_tokens=10.0)
    add_provider(box, router, upstream.base_url)
    person = make_person(box, make_role(box), budget=0.0008)  # 80 tokens
    with person.http as http:
        body: dict[str, Any] = {"model": name, "prompt": "x", "max_tokens": 40, "n": 1, "best_of": 4}
        upstream.script = lambda exchange: exchange.answer(
            {"choices": [{"index": 0, "text": "y", "finish_reason": "stop"}], "usage": usage(1, 4)}
        )
        assert http.post("/v1/completions", json={**body, "temperature": 1}).status_code == 200
    assert upstream.posted[-1].json["max_tokens"] == 20


def counting(box: Service, upstream: FakeUpstream) -> tuple[str, Person]:
    """Return a router whose provider costs a millionth a token of the prompt, and who can pay 1,000 of them."""
    router, name = make_router(box, cost_prompt_tokens=1.0)
    add_provider(box, router, upstream.base_url)
    return name, make_person(box, make_role(box), budget=0.001)


def answering(prompt_tokens: int) -> Script:
    """Return a script that counts every prompt as so many tokens."""
    return lambda exchange: exchange.answer({**chat_answer(), "usage": usage(prompt_tokens, 1)})


def test_prompts_with_images_make_texts_no_dearer(box: Service, upstream: FakeUpstream) -> None:
    name, person = counting(box, upstream)
    upstream.script = answering(5000)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    pictured = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    assert ask(box, name, messages=pictured).status_code == 200
    upstream.script = answering(10)
    with person.http as http:
        refused = http.post("/v1/chat/completions", json={"model": name, "messages": pictured})
        answered = http.post("/v1/chat/completions", json={"model": name, "messages": TEXT, "max_tokens": 4})
    assert (refused.status_code, answered.status_code) == (429, 200)


def test_a_count_that_cannot_be_shuts_out_budgets_for_a_while_only(
    box: Service, upstream: FakeUpstream
) -> None:
    name, person = counting(box, upstream)
    upstream.script = answering(1 << 30)
    assert ask(box, name).status_code == 200
    upstream.script = answering(10)
    with person.http as http:
        body = {"model": name, "messages": TEXT, "max_tokens": 4}
        statuses = [http.post("/v1/chat/completions", json=body).status_code for _ in range(100)]
    assert statuses[0] == 429
    assert 200 in statuses


def test_clients_that_leave_teach_nothing_of_how_prompts_are_counted(
    box: Service, upstream: FakeUpstream
) -> None:
    router, name = make_router(box, cost_prompt_tokens=1.0, cost_completion_tokens=10.0)
    add_provider(box, router, upstream.base_url)
    left = threading.Event()

    def uncounted(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.event(chunk("a"))
        if exchange.client_left(30):
            left.set()

    upstream.script = uncounted
    with box.http as http:
        body: dict[str, Any] = {"model": name, "messages": TEXT, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
    assert left.wait(30)
    upstream.script = streaming()
    person = make_person(box, make_role(box), budget=0.0011)
    with person.http as http:
        assert http.post("/v1/chat/completions", json={**body, "stream": False}).status_code == 200
    assert upstream.posted[-1].json["max_tokens"] == 103
