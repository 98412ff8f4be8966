"""GET /v1/admin/audit and /v1/admin/audit/verify: administrators read who changed what; only in the union."""

from __future__ import annotations

from typing import Any

import pytest

from tests.people import make_person, post_id
from tests.service import Service


def audit(service: Service, **query: Any) -> dict[str, Any]:
    with service.http as http:
        answer = http.get("/v1/admin/audit", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def test_a_change_is_a_line_with_who_what_and_from_where(bare_service: Service) -> None:
    made = post_id(bare_service, "/v1/admin/organizations", {"name": "audited"})

    line = audit(bare_service, action="organization.create")["data"][0]
    assert line.pop("created") > 1_600_000_000
    assert len(line.pop("mac")) == 64
    assert line.pop("id") > 0
    assert line == {
        "object": "audit.line",
        "user": 1,
        "actor": "administrator@localhost",
        "source": "127.0.0.1",
        "action": "organization.create",
        "target": str(made),
        "details": {"name": "audited"},
    }


def test_lines_come_newest_first_by_pages(bare_service: Service) -> None:
    for number in range(5):
        post_id(bare_service, "/v1/admin/organizations", {"name": f"page {number}"})

    first = audit(bare_service, limit=2, action="organization")
    assert [line["details"]["name"] for line in first["data"]] == ["page 4", "page 3"]
    assert first["has_more"] is True
    second = audit(bare_service, limit=2, offset=2, action="organization")
    assert [line["details"]["name"] for line in second["data"]] == ["page 2", "page 1"]
    before = audit(bare_service, limit=100, before=first["data"][-1]["id"], action="organization")
    assert before["data"][:2] == second["data"]
    assert before["has_more"] is False
    assert audit(bare_service, offset=2**63 - 1)["data"] == []
    assert audit(bare_service, actor="nobody@example.org")["data"] == []
    newest = first["data"][0]["created"]
    assert audit(bare_service, start_time=newest, end_time=newest)["data"]
    assert audit(bare_service, end_time=newest - 3600 * 24 * 365)["data"] == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?offset=-1", "offset"),
        ("?offset=9223372036854775808", "offset"),
        ("?before=x", "before"),
        ("?start_time=1e400", "start_time"),
        ("?end_time=-5", "end_time"),
        ("/verify?head=1:22", "head"),
        ("/verify?head=%00", "head"),
    ],
)
def test_wrong_queries_are_422(bare_service: Service, path: str, field: str) -> None:
    with bare_service.http as http:
        answer = http.get(f"/v1/admin/audit{path}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", field]


@pytest.mark.parametrize("text", ["%00", "%ff", "%ed%a0%80", "x" * 3000, "';--", "%F0%9F%98%80"])
def test_filters_take_any_text(bare_service: Service, text: str) -> None:
    with bare_service.http as http:
        answer = http.get(f"/v1/admin/audit?actor={text}&action={text}")
    assert answer.status_code == 200
    assert answer.json()["data"] == []


def test_the_log_is_verified_up_to_its_head_and_against_a_recorded_one(bare_service: Service) -> None:
    post_id(bare_service, "/v1/admin/organizations", {"name": "verified"})
    with bare_service.http as http:
        found = http.get("/v1/admin/audit/verify").json()
        newest = http.get("/v1/admin/audit?limit=1").json()["data"][0]
        again = http.get("/v1/admin/audit/verify", params={"head": found["head"]}).json()
        later = http.get("/v1/admin/audit/verify", params={"head": f"{10**9}:{'0' * 64}"}).json()
        other = http.get("/v1/admin/audit/verify", params={"head": f"1:{'0' * 64}"}).json()

    assert found["whole"] is True
    assert found["broken"] is None
    assert found["head"] == f"{newest['id']}:{newest['mac']}"
    assert found["lines"] == newest["id"]
    assert again["whole"] is True
    assert (later["whole"], later["broken"]["reason"]) == (False, "cut")
    assert (other["whole"], other["broken"]["line"]) == (False, 1)


@pytest.mark.parametrize("path", ["/v1/admin/audit", "/v1/admin/audit/verify"])
def test_only_administrators_read_the_log(bare_service: Service, path: str) -> None:
    person = make_person(bare_service)
    with person.http as http:
        answer = http.get(path)
        strict = http.get(f"/opengatellm{path}")

    assert answer.status_code == 403
    assert strict.status_code == 404
