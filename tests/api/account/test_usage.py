"""GET /v1/me/usage: what a user did, and nobody else."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from appliance.gateway.usage.record import Footprint, UsageRecord
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS
from tests.gateway.usage.store import keep, record
from tests.people import Person, make_person
from tests.service import CHAT, EMBEDDING, Service

PATH = "/v1/me/usage"


def did(person: Person, *records: UsageRecord) -> None:
    """Put records into the running service's store."""
    database = Database.open(person.service.data_dir / "appliance.db", MIGRATIONS)
    try:
        keep(database, *records)
    finally:
        database.close()


def ago(seconds: float) -> int:
    return round((time.time() - seconds) * 1000)


def ask(person: Person, path: str = PATH, **query: Any) -> httpx.Response:
    with person.http as http:
        return http.get(path, params=query)


def listed(person: Person, path: str = PATH, **query: Any) -> list[dict[str, Any]]:
    answer = ask(person, path, **query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_a_request_is_shown_with_all_it_used(bare_service: Service) -> None:
    person = make_person(bare_service)
    created = ago(5)
    did(
        person,
        record(
            created,
            user_id=person.id,
            key_name="laptop",
            model="some-model",
            ttft_ms=31,
            latency_ms=123,
            cost=2_500_000,
            footprint=Footprint(0.5, 1.0, 0.25, 0.75),
        ),
    )
    assert listed(person) == [
        {
            "object": "me.usage",
            "model": "some-model",
            "key": "laptop",
            "endpoint": "/v1/chat/completions",
            "method": "POST",
            "status": 200,
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 12,
                "cost": 2.5,
                "carbon": {"kWh": {"min": 0.5, "max": 1.0}, "kgCO2eq": {"min": 0.25, "max": 0.75}},
                "metrics": {"latency": 123, "ttft": 31},
            },
            "created": created // 1000,
        }
    ]


def test_measured_energy_is_marked(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, record(ago(5), user_id=person.id, footprint=Footprint(0.5, 0.5, 0.1, 0.1, measured=True)))
    assert listed(person)[0]["usage"]["carbon"]["measured"] is True


def test_everyone_sees_only_their_own_successes(bare_service: Service) -> None:
    person, other = make_person(bare_service), make_person(bare_service)
    did(
        person,
        record(ago(5), user_id=person.id, status=200),
        record(ago(4), user_id=person.id, status=299),
        record(ago(3), user_id=person.id, status=300),
        record(ago(2), user_id=person.id, status=503),
        record(ago(1), user_id=other.id),
    )
    assert [each["status"] for each in listed(person)] == [299, 200]
    assert len(listed(other)) == 1
    assert len(listed(other, "/opengatellm/v1/me/usage")) == 1


def test_pages_begin_with_the_newest(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, *(record(ago(100 - number), user_id=person.id, latency_ms=number) for number in range(12)))

    def latencies(**query: Any) -> list[int]:
        return [each["usage"]["metrics"]["latency"] for each in listed(person, **query)]

    assert latencies() == list(range(11, 1, -1))
    assert latencies(offset=10) == [1, 0]
    assert latencies(limit=3, offset=2) == [9, 8, 7]
    assert latencies(limit=100) == list(range(11, -1, -1))
    assert latencies(offset=(1 << 63) - 1) == []


def test_times_are_inclusive_and_the_last_thirty_days_by_default(bare_service: Service) -> None:
    person = make_person(bare_service)
    day = 86_400
    second = int(time.time()) - 100
    did(
        person,
        record(ago(31 * day), user_id=person.id),
        record(second * 1000 + 999, user_id=person.id),
        record(second * 1000 + 1000, user_id=person.id),
    )
    assert len(listed(person)) == 2
    assert len(listed(person, start_time=0)) == 3
    assert len(listed(person, start_time=second, end_time=second)) == 1
    assert len(listed(person, start_time=second, end_time=second + 1)) == 2
    assert listed(person, start_time=second + 1, end_time=second) == []
    assert len(listed(person, start_time=-(1 << 63) + 1, end_time=(1 << 63) - 1)) == 3


def test_requests_are_picked_by_endpoint(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, *(record(ago(5), user_id=person.id, endpoint=f"/v1/{each}") for each in ("rerank", "search")))
    assert [each["endpoint"] for each in listed(person, endpoint="/v1/rerank")] == ["/v1/rerank"]
    assert listed(person, endpoint="/v1/ocr") == []


def test_of_a_repeated_parameter_the_last_counts(bare_service: Service) -> None:
    with bare_service.http as http:
        answers = [
            http.get("/v1/me/usage", params=[(name, first), (name, last)])
            for name, good, bad in (("limit", "1", "x"), ("endpoint", "/v1/ocr", "x"))
            for first, last in ((bad, good), (good, bad))
        ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 422]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"offset": -1},
        {"offset": "9" * 30},
        {"start_time": "yesterday"},
        {"start_time": "1e9"},
        {"start_time": "١"},
        {"end_time": "9" * 5000},
        {"endpoint": "/v1/nothing"},
        {"endpoint": ""},
        {"endpoint": "\0"},
    ],
    ids=lambda query: str(query)[:40],
)
def test_what_is_out_of_bounds_is_422(bare_service: Service, query: dict[str, Any]) -> None:
    person = make_person(bare_service)
    for path in (PATH, "/opengatellm/v1/me/usage"):
        answer = ask(person, path, **query)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["detail"]
        assert error["loc"] == ["query", next(iter(query))]


def test_a_key_is_needed(bare_service: Service) -> None:
    answer = httpx.get(f"{bare_service.base_url}{PATH}", trust_env=False)
    assert answer.status_code == 401


def test_what_the_answer_said_is_in_the_list_at_once(service: Service) -> None:
    person = make_person(service)
    with person.http as http:
        body = {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        chat = http.post("/v1/chat/completions", json=body).json()["usage"]
        embedding = http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "Hello"}).json()["usage"]
        assert http.post("/v1/chat/completions", json={**body, "max_tokens": -1}).status_code == 400
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as streamed:
            streamed.read()
    shown = listed(person)
    assert [each["endpoint"] for each in shown] == [
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/chat/completions",
    ]
    assert shown[0]["usage"]["metrics"]["ttft"] is not None
    for each, said, model in ((shown[2], chat, CHAT), (shown[1], embedding, EMBEDDING)):
        assert each["model"] == model
        assert each["key"] == "test"
        assert each["usage"]["metrics"]["latency"] >= 0
        assert each["usage"]["metrics"]["ttft"] is None
        for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cost", "carbon"):
            assert each["usage"][name] == said[name]
        assert abs(each["created"] - time.time()) < 60
    assert chat["carbon"]["kWh"]["max"] > 0
