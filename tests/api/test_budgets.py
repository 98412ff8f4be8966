"""Budgets over HTTP: what answers cost is what leaves the budget, and never more than there was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.usage.store import until_stored
from tests.people import Person, make_person, make_role, router_id
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service, running_service

QUESTION = [{"role": "user", "content": "Name a colour."}]
# Per million tokens: a thousandth and two thousandths of the currency for each.
PROMPT_PRICE, COMPLETION_PRICE = 1000.0, 2000.0
PROMPT, COMPLETION = PROMPT_PRICE / 1e6, COMPLETION_PRICE / 1e6


def set_prices(service: Service, model: str, prompt: float, completion: float) -> None:
    with service.http as http:
        body = {"cost_prompt_tokens": prompt, "cost_completion_tokens": completion}
        answer = http.patch(f"/v1/admin/routers/{router_id(service, model)}", json=body)
        assert answer.status_code == 204, answer.text


@pytest.fixture(scope="module")
def priced(service: Service) -> Iterator[Service]:
    """Return the service while chat and reranking have prices, and embeddings have none."""
    for model in (CHAT, RERANK):
        set_prices(service, model, PROMPT_PRICE, COMPLETION_PRICE)
    yield service
    for model in (CHAT, RERANK):
        set_prices(service, model, 0, 0)


@pytest.fixture(scope="module")
def role(service: Service) -> int:
    """Return a role without limits."""
    return make_role(service)


@pytest.fixture(scope="module")
def prompt_cost(priced: Service, role: int) -> float:
    """Return what the question costs without an answer."""
    with make_person(priced, role).http as http:
        answer = http.post("/v1/chat/completions", json=body(max_tokens=1)).json()
    cost: float = answer["usage"]["cost"] - answer["usage"]["completion_tokens"] * COMPLETION
    return round(cost, 6)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT, "messages": QUESTION, "ignore_eos": True, "max_tokens": 4, **fields}


def chat(person: Person, mount: str = "/v1", **fields: Any) -> httpx.Response:
    with person.http as http:
        return http.post(f"{mount}/chat/completions", json=body(**fields))


def budget_of(person: Person) -> float:
    """Return what an administrator is shown."""
    with person.service.http as http:
        shown: float = http.get(f"/v1/admin/users/{person.id}").json()["budget"]
        return shown


def set_budget(person: Person, budget: float | None) -> None:
    with person.service.http as http:
        answer = http.patch(f"/v1/admin/users/{person.id}", json={"budget": budget})
        assert answer.status_code == 204, answer.text


def cost_of(answer: httpx.Response) -> float:
    assert answer.status_code == 200, answer.text
    cost: float = answer.json()["usage"]["cost"]
    return cost


def test_what_an_answer_costs_leaves_the_budget(priced: Service, role: int) -> None:
    person = make_person(priced, role, budget=5)
    usage = chat(person).json()["usage"]

    assert usage["completion_tokens"] == 4
    assert usage["cost"] == round(usage["prompt_tokens"] * PROMPT + 4 * COMPLETION, 6)
    assert budget_of(person) == round(5 - usage["cost"], 6)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "temperature": 0.8},
        {"n": 3, "temperature": 0},
        {"n": 2, "best_of": 4, "temperature": 0.8},
        {"n": 2, "use_beam_search": True, "temperature": 0, "best_of": 3},
        {"enforced_str": "a colour"},
        {"max_tokens": 200, "ignore_eos": False},
    ],
    ids=json.dumps,
)
def test_every_way_to_answer_costs_what_it_says_and_no_more_than_there_was(
    priced: Service, role: int, fields: dict[str, Any], prompt_cost: float
) -> None:
    rich = make_person(priced, role, budget=50)
    answer = chat(rich, **fields)
    assert budget_of(rich) == round(50 - cost_of(answer), 6)

    poor = make_person(priced, role, budget=round(prompt_cost + 9 * COMPLETION, 6))
    cut = chat(poor, **fields)
    assert cut.json()["usage"]["completion_tokens"] <= 9
    assert budget_of(poor) == round(prompt_cost + 9 * COMPLETION - cost_of(cut), 6)


def test_an_answer_is_cut_where_the_budget_ends(priced: Service, role: int, prompt_cost: float) -> None:
    person = make_person(priced, role, budget=round(prompt_cost + 5 * COMPLETION, 6))
    answer = chat(person, max_tokens=100)

    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert budget_of(person) == 0
    assert chat(person).status_code == 429


def test_a_stream_is_cut_where_the_budget_ends(priced: Service, role: int, prompt_cost: float) -> None:
    person = make_person(priced, role, budget=round(prompt_cost + 5 * COMPLETION, 6))
    answer = chat(person, max_tokens=100, stream=True, stream_options={"include_usage": True})

    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [each["choices"][0]["finish_reason"] for each in events if each["choices"]][-1] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 5
    assert budget_of(person) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("left", [0.0, 0.001, "the prompt alone"])
def test_less_than_the_prompt_and_a_token_is_refused(
    priced: Service, role: int, prompt_cost: float, left: float | str, stream: bool
) -> None:
    budget = prompt_cost if isinstance(left, str) else left
    person = make_person(priced, role, budget=budget)
    union = chat(person, stream=stream)
    strict = chat(person, "/opengatellm/v1", stream=stream)

    assert union.status_code == 429
    assert union.json()["error"]["message"] == "Insufficient budget."
    assert union.json()["error"]["code"] == "insufficient_quota"
    assert (strict.status_code, strict.json()) == (400, {"detail": "Insufficient budget."})
    assert budget_of(person) == budget


def test_clients_do_not_try_again_by_themselves_without_a_budget(priced: Service, role: int) -> None:
    refused = chat(make_person(priced, role, budget=0))

    assert (refused.headers["x-should-retry"], refused.headers["Retry-After"]) == ("false", "60")


def test_an_empty_budget_still_uses_what_is_free(priced: Service, role: int) -> None:
    with make_person(priced, role, budget=0).http as http:
        answer = http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "free"})

    assert answer.status_code == 200
    assert answer.json()["usage"]["cost"] == 0


def test_an_empty_budget_hears_nothing_where_hearing_has_a_price(priced: Service, role: int) -> None:
    set_prices(priced, SPEECH, PROMPT_PRICE, 0)
    try:
        person = make_person(priced, role, budget=0)
        for mount, status in (("/v1", 429), ("/opengatellm/v1", 400)):
            with person.http as http:
                answer = http.post(
                    f"{mount}/audio/transcriptions",
                    data={"model": SPEECH},
                    files={"file": ("a.wav", b"no audio")},
                )
            assert answer.status_code == status, answer.text
            assert "Insufficient budget." in answer.text
    finally:
        set_prices(priced, SPEECH, 0, 0)


def test_without_a_budget_there_is_no_limit(priced: Service, role: int) -> None:
    person = make_person(priced, role)

    assert cost_of(chat(person)) > 0
    assert budget_of(person) is None


def test_reranking_is_billed_by_its_tokens(priced: Service, role: int) -> None:
    person = make_person(priced, role, budget=1)
    with person.http as http:
        asked = {"model": RERANK, "query": "a colour", "documents": ["red", "a dog"]}
        usage = http.post("/v1/rerank", json=asked).json()["usage"]
        assert usage["prompt_tokens"] > 0
        assert budget_of(person) == round(1 - usage["prompt_tokens"] * PROMPT, 6)
        set_budget(person, 0.001)
        assert http.post("/v1/rerank", json=asked).status_code == 429


def test_requests_that_fail_cost_nothing_and_hold_nothing(
    priced: Service, role: int, prompt_cost: float
) -> None:
    person = make_person(priced, role, budget=round(prompt_cost + 4 * COMPLETION, 6))
    wrong: list[dict[str, Any]] = [
        {"temperature": 9},
        {"messages": []},
        {"guided_json": {"type": "nothing"}},
        {"guided_regex": "("},
        {"tools": 7},
        {"logprobs": True, "top_logprobs": 20, "n": 128, "max_tokens": 8000},
    ]
    for fields in wrong * 3:
        assert 400 <= chat(person, **fields).status_code < 500, fields

    assert budget_of(person) == round(prompt_cost + 4 * COMPLETION, 6)
    assert chat(person).json()["usage"]["completion_tokens"] == 4, "all of it can be spent"


def test_a_budget_for_fifty_is_never_overspent_by_two_hundred_at_once(
    priced: Service, role: int, prompt_cost: float
) -> None:
    one = round(prompt_cost + 4 * COMPLETION, 6)
    budget = round(50 * one, 6)
    person = make_person(priced, role, budget=budget)
    with person.http as http, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/chat/completions", json=body()), range(200)))

    assert set(Counter(each.status_code for each in answers)) == {200, 429}
    spent = sum(cost_of(each) for each in answers if each.status_code == 200)
    assert spent <= budget + 1e-9
    assert budget_of(person) == round(budget - spent, 6)
    assert spent >= budget * 0.9, "and nearly all of it can be spent"
    for each in answers:
        if each.status_code == 429:
            assert each.json()["error"]["message"] == "Insufficient budget."


def test_streams_and_answers_of_all_lengths_at_once_never_overspend(
    priced: Service, role: int, prompt_cost: float
) -> None:
    budget = round(20 * (prompt_cost + 10 * COMPLETION), 6)
    person = make_person(priced, role, budget=budget)

    def ask(number: int) -> float:
        fields: dict[str, Any] = {
            "max_tokens": 1 + number % 25,
            "ignore_eos": number % 3 > 0,
            "n": 1 + number % 2,
        }
        fields["temperature"] = 0.9
        if number % 4:
            answer = http.post("/v1/chat/completions", json=body(**fields))
            return cost_of(answer) if answer.status_code == 200 else 0.0
        answer = http.post(
            "/v1/chat/completions", json=body(**fields, stream=True, stream_options={"include_usage": True})
        )
        if answer.status_code != 200:
            return 0.0
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        cost: float = events[-1]["usage"]["cost"]
        return cost

    with person.http as http, ThreadPoolExecutor(24) as pool:
        spent = sum(pool.map(ask, range(96)))

    assert 0 < spent <= budget + 1e-9
    assert budget_of(person) == round(budget - spent, 6)


def test_a_stream_whose_client_leaves_is_billed_for_what_was_sent(
    priced: Service, role: int, prompt_cost: float
) -> None:
    person = make_person(priced, role, budget=10)
    chunks = 0
    with (
        person.http as http,
        http.stream("POST", "/v1/chat/completions", json=body(max_tokens=1500, stream=True)) as answer,
    ):
        for line in answer.iter_lines():
            chunks += line.startswith("data: ")
            if chunks > 8:
                break
    spent = 0.0
    deadline = time.monotonic() + 10
    while not spent and time.monotonic() < deadline:
        time.sleep(0.05)
        spent = round(10 - budget_of(person), 6)
    time.sleep(1)

    assert round(10 - budget_of(person), 6) == spent, "it is billed once"
    # The first chunk has no token.
    assert prompt_cost + 7 * COMPLETION <= spent < prompt_cost + 1500 * COMPLETION
    set_budget(person, round(prompt_cost + COMPLETION, 6))
    assert chat(person, max_tokens=1).status_code == 200, "nothing of it is held any more"


def test_a_client_that_leaves_before_its_answer_pays_and_holds_nothing(
    priced: Service, role: int, prompt_cost: float
) -> None:
    person = make_person(priced, role, budget=round(prompt_cost + 1500 * COMPLETION, 6))
    with pytest.raises(httpx.ReadTimeout), person.http as http:
        http.post("/v1/chat/completions", json=body(max_tokens=1500), timeout=0.3)
    deadline = time.monotonic() + 10
    answer = chat(person, max_tokens=1500, temperature=9)
    while answer.status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = chat(person, max_tokens=2)

    assert budget_of(person) == round(prompt_cost + 1500 * COMPLETION - cost_of(answer), 6)


def test_what_was_spent_and_is_in_the_store_survives_a_crash(service: Service, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(service.data_dir / "packs" / EMBEDDING, data_dir / "packs" / EMBEDDING, symlinks=True)
    asked = {"model": EMBEDDING, "input": "one two three"}
    with running_service(data_dir) as first:
        set_prices(first, EMBEDDING, PROMPT_PRICE, 0)
        person = make_person(first, budget=1)
        with person.http as http:
            spent = sum(cost_of(http.post("/v1/embeddings", json=asked)) for _ in range(5))
        until_stored(data_dir, "SELECT count(*) = 5 FROM usage WHERE user_id = ?", person.id)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(30)
    with closing(sqlite3.connect(data_dir / "appliance.db")) as store:
        records = store.execute("SELECT status, cost FROM usage WHERE user_id = ?", [person.id]).fetchall()

    assert [status for status, _ in records] == [200] * 5
    assert sum(cost for _, cost in records) == round(spent * 1e6)
    with running_service(data_dir) as second:
        again = Person(second, person.id, person.email, person.role, person.key_id, person.key)
        assert budget_of(again) == round(1 - spent, 6)


def test_stopping_the_service_loses_nothing(service: Service, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(service.data_dir / "packs" / EMBEDDING, data_dir / "packs" / EMBEDDING, symlinks=True)
    with running_service(data_dir) as first:
        set_prices(first, EMBEDDING, PROMPT_PRICE, 0)
        person = make_person(first, budget=1)
        with person.http as http:
            spent = cost_of(http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "one two"}))
    with closing(sqlite3.connect(data_dir / "appliance.db")) as store:
        left = store.execute("SELECT budget FROM users WHERE id = ?", [person.id]).fetchone()[0]
        records = store.execute("SELECT count(*) FROM usage").fetchone()[0]

    assert left == 1_000_000 - round(spent * 1e6)
    assert records == 1
