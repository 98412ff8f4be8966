"""Limits over HTTP: every kind of them, on every status, across keys, connections, restarts and crashes."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.usage.store import until_stored
from tests.people import Person, limits, make_person, make_role, router_id
from tests.service import CHAT, EMBEDDING, RERANK, Service, running_service

QUESTION = [{"role": "user", "content": "Hello."}]
NAMES = {
    f"x-ratelimit-{what}-{unit}"
    for what in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
}
DURATION = re.compile(r"^(\d+h)?(\d+m)?\d+m?s$")


def limited(service: Service, model: str = CHAT, **values: int | None) -> Person:
    """Make a user whose role may use one model within limits."""
    return make_person(service, make_role(service, limits=limits(router_id(service, model), **values)))


def chat(person: Person, mount: str = "/v1", **fields: Any) -> httpx.Response:
    body = {"model": CHAT, "messages": QUESTION, "max_tokens": 1, **fields}
    with person.http as http:
        return http.post(f"{mount}/chat/completions", json=body)


def embed(person: Person, text: str, model: str = EMBEDDING, mount: str = "/v1") -> httpx.Response:
    with person.http as http:
        return http.post(f"{mount}/embeddings", json={"model": model, "input": text})


def shown(answer: httpx.Response) -> dict[str, str]:
    """Return the limits that an answer shows, without the part of the name that all have."""
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("x-ratelimit-")
    }


def message(answer: httpx.Response) -> str:
    body = answer.json()
    text: str = body["error"]["message"] if "error" in body else body["detail"]
    return text


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
@pytest.mark.parametrize("period", ["minute", "day"])
def test_requests_beyond_the_limit_are_429_with_the_time_to_wait(
    service: Service, mount: str, period: str
) -> None:
    person = limited(service, EMBEDDING, **{f"rp{period[0]}": 2})
    answers = [embed(person, "a", mount=mount) for _ in range(3)]

    assert [each.status_code for each in answers] == [200, 200, 429]
    assert message(answers[2]) == f"2 requests per {period} exceeded (remaining: 0)."
    window = 60 if period == "minute" else 86400
    assert window - 30 <= int(answers[2].headers["retry-after"]) <= window + 61
    if mount == "/opengatellm/v1":
        assert answers[2].json() == {"detail": f"2 requests per {period} exceeded (remaining: 0)."}
    else:
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("period", ["minute", "day"])
def test_a_prompt_beyond_the_token_limit_is_429_and_counts_as_a_request(
    service: Service, period: str
) -> None:
    person = limited(service, EMBEDDING, rpm=3, **{f"tp{period[0]}": 10})
    refused = embed(person, "one two three four five six seven eight nine ten")
    accepted = embed(person, "one")

    assert refused.status_code == 429
    assert message(refused) == f"10 input tokens per {period} exceeded (remaining: 10)."
    assert refused.headers["retry-after"] == ("60" if period == "minute" else "86400")
    assert shown(refused)["remaining-requests"] == "2"
    assert accepted.status_code == 200
    assert shown(accepted)["remaining-requests"] == "1"
    used = accepted.json()["usage"]["prompt_tokens"]
    assert shown(accepted)["remaining-tokens"] == str(10 - used)


def test_what_a_limit_refuses_leaves_no_record(service: Service) -> None:
    person = limited(service, EMBEDDING, rpm=2, tpm=5)
    statuses = [embed(person, text).status_code for text in ("one", "one two three four five six", "one")]

    with service.http as http:
        recorded = http.get("/v1/admin/usage", params={"user": person.id}).json()["data"]
    assert statuses == [200, 429, 429]
    assert [record["status"] for record in recorded] == [200]


def test_completions_are_never_charged_to_token_limits(service: Service) -> None:
    person = limited(service, tpm=1000)
    first = chat(person, max_tokens=20, ignore_eos=True)

    assert first.json()["usage"]["completion_tokens"] == 20
    assert shown(first)["remaining-tokens"] == str(1000 - first.json()["usage"]["prompt_tokens"])


def test_every_status_shows_the_limits(service: Service) -> None:
    person = limited(service, rpm=6, rpd=1000, tpm=10_000, tpd=20_000)
    answers = {
        "served": chat(person),
        "a wrong value": chat(person, temperature=9),
        "a wrong type": chat(person, messages=7),
        "a wrong field on a strict mount": chat(person, "/opengatellm/v1", messages=7),
        "a model of another kind": embed(person, "a", model=CHAT),
        "a stream": chat(person, stream=True),
        "too many": chat(person),
        "too many on a strict mount": chat(person, "/opengatellm/v1"),
        "too many for a stream": chat(person, stream=True),
    }

    assert [each.status_code for each in answers.values()] == [200, 400, 400, 422, 400, 200, 429, 429, 429]
    for what, answer in answers.items():
        assert {name for name in answer.headers if name in NAMES} == NAMES, what
        found = shown(answer)
        assert found["limit-requests"] == "6", what
        assert DURATION.match(found["reset-requests"]), found
        assert DURATION.match(found["reset-tokens"]), found
    assert [shown(each)["remaining-requests"] for each in answers.values()] == list("543210000")


def test_the_day_is_shown_when_it_is_nearer_its_end(service: Service) -> None:
    person = limited(service, EMBEDDING, rpm=100, rpd=10, tpm=None, tpd=50)
    answer = embed(person, "a")

    assert shown(answer)["limit-requests"] == "10"
    assert shown(answer)["remaining-requests"] == "9"
    assert re.match(r"^24h[01]m\d+s$", shown(answer)["reset-requests"]) or shown(answer)[
        "reset-requests"
    ].startswith("23h59m")
    assert shown(answer)["limit-tokens"] == "50"


def test_who_has_no_limit_is_shown_none(service: Service) -> None:
    assert shown(embed(make_person(service), "a")) == {}
    half = shown(embed(limited(service, EMBEDDING, rpm=5), "a"))
    assert set(half) == {"limit-requests", "remaining-requests", "reset-requests"}


def test_limits_are_the_users_not_the_keys(service: Service) -> None:
    person = limited(service, EMBEDDING, rpm=2)
    with service.http as http:
        other = http.post("/v1/admin/tokens", json={"name": "other", "user": person.id}).json()["token"]
    with httpx.Client(base_url=service.base_url, headers={"X-API-Key": other}, trust_env=False) as http:
        assert http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "a"}).status_code == 200
        assert embed(person, "a").status_code == 200
        assert http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "a"}).status_code == 429


def test_models_are_limited_apart(service: Service) -> None:
    both = limits(router_id(service, EMBEDDING), rpm=1) + limits(router_id(service, RERANK), rpm=1)
    person = make_person(service, make_role(service, limits=both))
    with person.http as http:
        rerank = {"model": RERANK, "query": "a", "documents": ["b"]}
        assert embed(person, "a").status_code == 200
        assert http.post("/v1/rerank", json=rerank).status_code == 200
        assert embed(person, "a").status_code == 429
        assert http.post("/v1/rerank", json=rerank).status_code == 429


def test_a_raised_limit_counts_at_once(service: Service) -> None:
    router = router_id(service, EMBEDDING)
    role = make_role(service, limits=limits(router, rpm=1))
    person = make_person(service, role)
    assert [embed(person, "a").status_code for _ in range(2)] == [200, 429]
    with service.http as http:
        changed = http.patch(f"/v1/admin/roles/{role}", json={"limits": limits(router, rpm=3)})
        assert changed.status_code == 204, changed.text

    assert [embed(person, "a").status_code for _ in range(3)] == [200, 200, 429]


def test_of_requests_at_once_exactly_the_limit_gets_through(service: Service) -> None:
    person = limited(service, EMBEDDING, rpm=20, rpd=10_000)
    with person.http as http, ThreadPoolExecutor(32) as pool:
        statuses = Counter(
            pool.map(
                lambda _: http.post("/v1/embeddings", json={"model": EMBEDDING, "input": ""}).status_code,
                range(200),
            )
        )

    # A body that is wrong counts too, as the contract has it.
    assert statuses == {400: 20, 429: 180}


def test_tokens_at_once_never_exceed_the_limit(service: Service) -> None:
    person = limited(service, EMBEDDING, tpm=100)
    with person.http as http, ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "one two three"}),
                range(60),
            )
        )

    served = [each for each in answers if each.status_code == 200]
    tokens = [each.json()["usage"]["prompt_tokens"] for each in served]
    assert {each.status_code for each in answers} == {200, 429}
    assert sum(tokens) <= 100
    assert sum(tokens) + tokens[0] > 100, "as many as fit got through"


def test_the_bootstrap_key_on_opengatellms_mount_has_no_limits(service: Service) -> None:
    with service.http as http:
        answer = http.post("/opengatellm/v1/embeddings", json={"model": EMBEDDING, "input": "a"})

    assert answer.status_code == 200
    assert shown(answer) == {}


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_day_limits_outlive_the_service_however_it_ends(
    service: Service, tmp_path: Path, ending: signal.Signals
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(service.data_dir / "packs" / EMBEDDING, data_dir / "packs" / EMBEDDING, symlinks=True)
    with running_service(data_dir) as first:
        person = limited(first, EMBEDDING, rpd=5, tpd=50)
        used = [embed(person, "one two").json()["usage"]["prompt_tokens"] for _ in range(3)]
        if ending == signal.SIGKILL:  # it outlives what is on disk: within a second, but for a busy disk
            until_stored(data_dir, "SELECT sum(requests) = 3 AND sum(tokens) = ? FROM limit_hits", sum(used))
        os.kill(first.process.pid, ending)
        first.process.wait(30)

    with running_service(data_dir) as second:
        again = Person(second, person.id, person.email, person.role, person.key_id, person.key)
        answers = [embed(again, "one two") for _ in range(3)]

    assert [each.status_code for each in answers] == [200, 200, 429]
    assert message(answers[2]) == "5 requests per day exceeded (remaining: 0)."
    assert shown(answers[0])["remaining-requests"] == "1"
    assert shown(answers[0])["remaining-tokens"] == str(50 - sum(used) - used[0])
