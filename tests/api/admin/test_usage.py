"""GET /v1/admin/usage: everyone's requests, for administrators alone."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.api.account.test_usage import ago, did
from tests.gateway.usage.store import record
from tests.people import make_person
from tests.service import Service

PATH = "/v1/admin/usage"


def ask(service: Service, accept: str = "application/json", **query: Any) -> httpx.Response:
    with service.http as http:
        return http.get(PATH, params=query, headers={"Accept": accept})


def listed(service: Service, **query: Any) -> dict[str, Any]:
    answer = ask(service, **query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows_of(service: Service, **query: Any) -> list[dict[str, str]]:
    answer = ask(service, "text/csv", **query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_requests_are_found_by_who_what_and_how_they_ended(bare_service: Service) -> None:
    one, two = make_person(bare_service), make_person(bare_service)
    did(
        one,
        record(ago(9), user_id=one.id, email=one.email, model="admin-a"),
        record(ago(8), user_id=one.id, email=one.email, model="admin-b", status=503),
        record(ago(7), user_id=two.id, email=two.email, model="admin-a", endpoint="/v1/rerank"),
    )
    found = listed(bare_service, user=one.id)
    assert [each["model"] for each in found["data"]] == ["admin-b", "admin-a"]
    assert (found["total"], found["offset"], found["limit"]) == (2, 0, 10)
    assert found["sums"] == {"prompt_tokens": 20, "completion_tokens": 4, "cost": 24 / 1_000_000}
    assert [each["email"] for each in listed(bare_service, model="admin-a")["data"]] == [two.email, one.email]
    assert listed(bare_service, user=one.id, status="5xx")["total"] == 1
    assert listed(bare_service, user=one.id, status=200)["total"] == 1
    assert listed(bare_service, model="admin-a", endpoint="/v1/rerank")["total"] == 1
    assert listed(bare_service, user=one.id, limit=1, offset=1)["data"][0]["model"] == "admin-a"
    assert listed(bare_service, user=one.id, end_time=1)["total"] == 0
    assert listed(bare_service, model="no\0such")["total"] == 0


def test_a_csv_file_has_all_that_match(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, *(record(ago(2000 - number), user_id=person.id, latency_ms=number) for number in range(1203)))
    rows = rows_of(bare_service, user=person.id)
    assert [int(row["latency_ms"]) for row in rows] == list(range(1202, -1, -1))
    assert (rows[0]["kwh_max"], rows[0]["measured"], rows[0]["ttft_ms"]) == ("1.0", "False", "")
    assert rows_of(bare_service, user=person.id, end_time=1) == []


def test_a_csv_file_has_costs_in_the_currency_and_readable_times(bare_service: Service) -> None:
    person = make_person(bare_service)
    moment = ago(60)
    did(
        person,
        record(moment, user_id=person.id, cost=4600),
        record(moment - 1000, user_id=person.id, cost=12_000_001),
    )
    rows = rows_of(bare_service, user=person.id)
    assert [row["cost"] for row in rows] == ["0.004600", "12.000001"]
    when = datetime.fromisoformat(rows[0]["created_at"])
    assert round(when.timestamp() * 1000) == moment


def test_cells_of_a_csv_file_are_no_formulas(bare_service: Service) -> None:
    person = make_person(bare_service)
    names = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\n=1", "\uff1d1+1", 'plain, "quoted"\nname']
    did(
        person,
        *(record(ago(100 + at), user_id=person.id, key_name=name) for at, name in enumerate(names)),
    )
    shown = [row["key_name"] for row in rows_of(bare_service, user=person.id)]
    assert shown == [*(f"'{name}" for name in names[:-1]), names[-1]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "me"),
        ("user", "9" * 30),
        ("status", "ok"),
        ("status", "600"),
        ("status", "٢٠٠"),
        ("limit", "0"),
    ],
)
def test_what_is_out_of_bounds_is_422(bare_service: Service, field: str, value: str) -> None:
    for accept in ("application/json", "text/csv"):
        answer = ask(bare_service, accept, **{field: value})
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"][0]["loc"] == ["query", field]


def test_others_may_not_look(bare_service: Service) -> None:
    person = make_person(bare_service)
    with person.http as http:
        assert http.get(PATH).status_code == 403
        assert http.get(PATH, headers={"Accept": "text/csv"}).status_code == 403
    with bare_service.http as http:
        assert http.get("/opengatellm/v1/admin/usage").status_code == 404
