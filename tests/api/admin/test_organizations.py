"""/v1/admin/organizations, as the published contract has it."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.hostile import bodies, no_requests, refuses, send, well
from tests.people import make_person, make_role
from tests.service import Service

PATH = "/v1/admin/organizations"
_numbers = itertools.count(1)


def unique(noun: str = "organization") -> str:
    return f"{noun}-{time.time_ns()}-{next(_numbers)}"


def make(http: httpx.Client, name: str | None = None) -> int:
    answer = http.post(PATH, json={"name": name or unique()})
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"id"}
    return int(answer.json()["id"])


def everything(http: httpx.Client, path: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := http.get(path, params={**query, "limit": 100, "offset": len(found)}).json()["data"]:
        found += page
    return found


def test_one_is_made_shown_renamed_and_removed(bare_service: Service) -> None:
    with bare_service.http as http:
        name = unique()
        before = int(time.time())
        made = make(http, f" {name}\t\n")

        shown = http.get(f"{PATH}/{made}").json()
        assert before <= shown.pop("created") <= shown.pop("updated") <= time.time()
        assert shown == {"object": "organization", "id": made, "name": name, "users": 0}
        renamed = http.patch(f"{PATH}/{made}", json={"name": f"{name} two "})
        assert (renamed.status_code, renamed.content) == (204, b"")
        assert http.get(f"{PATH}/{made}").json()["name"] == f"{name} two"
        assert http.patch(f"{PATH}/{made}", json={"name": None}).status_code == 204
        assert http.patch(f"{PATH}/{made}", json={}).status_code == 204
        assert http.patch(f"{PATH}/{made}", json={"name": f"{name} two"}).status_code == 204
        assert http.get(f"{PATH}/{made}").json()["name"] == f"{name} two"
        removed = http.delete(f"{PATH}/{made}")
        assert (removed.status_code, removed.content) == (204, b"")
        for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("PATCH", {}), ("DELETE", None)):
            gone = http.request(method, f"{PATH}/{made}", json=body)
            assert gone.status_code == 404
            assert gone.json()["detail"] == "Organization not found."


def test_a_taken_name_is_refused(bare_service: Service) -> None:
    with bare_service.http as http:
        first, second = unique(), unique()
        make(http, first)
        other = make(http, second)

        again = http.post(PATH, json={"name": first + " "})
        assert again.status_code == 409
        assert again.json()["detail"] == "Organization already exists."
        renamed = http.patch(f"{PATH}/{other}", json={"name": first})
        assert renamed.status_code == 409
        assert renamed.json()["detail"] == "Organization name already taken. Please, choose another one."
        assert http.get(f"{PATH}/{other}").json()["name"] == second


def test_one_with_users_stays_and_says_how_many(bare_service: Service) -> None:
    with bare_service.http as http:
        made = make(http)
        role = make_role(bare_service)
        people = [make_person(bare_service, role, organization=made) for _ in range(2)]

        assert http.get(f"{PATH}/{made}").json()["users"] == 2
        refused = http.delete(f"{PATH}/{made}")
        assert refused.status_code == 409
        assert refused.json()["detail"] == "Delete organization with users is not allowed."
        for person in people:
            assert http.patch(f"/v1/admin/users/{person.id}", json={}).status_code == 204
        assert http.get(f"{PATH}/{made}").json()["users"] == 0
        assert http.delete(f"{PATH}/{made}").status_code == 204


def test_lists_are_ordered_and_cut(bare_service: Service) -> None:
    with bare_service.http as http:
        stem = unique()
        made = [make(http, f"{stem}-{letter}") for letter in "bca"]
        total = len(everything(http, PATH))

        def page(**query: Any) -> list[int]:
            answer = http.get(PATH, params=query)
            assert answer.status_code == 200, answer.text
            assert set(answer.json()) == {"object", "data"}
            assert answer.json()["object"] == "list"
            return [each["id"] for each in answer.json()["data"]]

        assert page(offset=total - 3) == made
        assert page(offset=total - 3, limit=2) == made[:2]
        assert page(limit=3, order_direction="desc") == made[::-1]
        assert len(page()) == min(total, 10)
        for order_by in ("created", "updated"):
            assert set(page(order_by=order_by, order_direction="desc", limit=3)) == set(made)
        names = [each["name"] for each in everything(http, PATH, order_by="name")]
        assert names == sorted(names)
        assert page(sort_by="name", sort_order="desc", limit=1) == page(
            order_by="name", order_direction="desc", limit=1
        )
        assert page(offset=total) == page(offset=10**9) == page(offset=(1 << 63) - 1) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": 101}, "Input should be less than or equal to 100"),
        ({"limit": 0}, "Input should be greater than or equal to 1"),
        ({"offset": -1}, "Input should be greater than or equal to 0"),
        ({"offset": 10**30}, "Input should be less than or equal to"),
        ({"offset": "x"}, "Input should be a valid integer"),
        ({"limit": ""}, "Input should be a valid integer"),
        ({"order_by": "email"}, "Input should be 'id', 'name', 'created' or 'updated'"),
        ({"order_direction": "up"}, "Input should be 'asc' or 'desc'"),
    ],
)
def test_a_page_out_of_bounds_is_refused(bare_service: Service, query: dict[str, Any], message: str) -> None:
    with bare_service.http as http:
        answer = http.get(PATH, params=query)

    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == ["query", next(iter(query))]
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "missing"),
        ({"name": None}, "string_type"),
        ({"name": 5}, "string_type"),
        ({"name": ""}, "string_too_short"),
        ({"name": " \t"}, "string_too_short"),
        ({"name": "x" * 257}, "string_too_long"),
        ({"name": "a\0b"}, "value_error"),
    ],
)
def test_a_name_that_is_none_is_refused(bare_service: Service, body: dict[str, Any], kind: str) -> None:
    with bare_service.http as http:
        answer = http.post(PATH, json=body)

    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["type"]) == (["body", "name"], kind)


@pytest.mark.parametrize("path", ["0", "-1", "99999", str(1 << 63), "9" * 500])
def test_an_id_that_none_has_is_not_found(bare_service: Service, path: str) -> None:
    with bare_service.http as http:
        assert http.get(f"{PATH}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["x", "1.5", "%00", "1;2", "nan"])
def test_an_id_that_is_no_number_is_refused(bare_service: Service, path: str) -> None:
    with bare_service.http as http:
        answer = http.get(f"{PATH}/{path}")

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["path", "organization"]


@pytest.mark.parametrize("body", no_requests("name"))
def test_what_is_no_request_is_refused(bare_service: Service, body: bytes) -> None:
    with bare_service.http as http:
        made = make(http)
        assert refuses(http, PATH, made, body)


@pytest.fixture(scope="module")
def target(http: httpx.Client) -> int:
    return make(http)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies(name=st.text(max_size=12)), method=st.sampled_from(["POST", "PATCH"]))
def test_any_json_is_taken_or_refused(http: httpx.Client, target: int, body: Any, method: str) -> None:
    answer = send(http, method, PATH if method == "POST" else f"{PATH}/{target}", body)
    assert well(answer), answer.text


def test_only_administrators_come_near(bare_service: Service) -> None:
    person = make_person(
        bare_service,
        make_role(bare_service, permissions=["create_public_collection", "read_metric", "provide_models"]),
    )
    with bare_service.http as http, person.http as other:
        name = unique()
        made = make(http, name)
        for method, path in (
            ("POST", PATH),
            ("GET", PATH),
            *((m, f"{PATH}/{made}") for m in ("GET", "PATCH", "DELETE")),
        ):
            refused = other.request(method, path, json={"name": unique()})
            assert refused.status_code == 403
            assert refused.json()["detail"] == "Insufficient rights."
            assert httpx.request(method, bare_service.base_url + path).status_code == 401
        assert http.get(f"{PATH}/{made}").json()["name"] == name
