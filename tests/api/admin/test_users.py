"""/v1/admin/users, as the published contract has it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.hostile import bodies, no_requests, refuses, send, well
from tests.people import PASSWORD, Person, make_person, make_role, outlive, post_id, short_life
from tests.service import EMBEDDING, Service

PATH = "/v1/admin/users"
STRICT = "/opengatellm/v1/admin/users"
FUTURE = 1_999_999_999
KEYS = {
    *("object", "id", "email", "name", "sub", "iss", "role", "organization", "budget", "expires"),
    *("created", "updated", "priority"),
}
_numbers = itertools.count(1)


def unique() -> str:
    return f"Person-{time.time_ns()}-{next(_numbers)}@example.org"


def make_organization(service: Service) -> int:
    return post_id(service, "/v1/admin/organizations", {"name": f"organization-{time.time_ns()}"})


@pytest.fixture(scope="module")
def role(bare_service: Service) -> int:
    return make_role(bare_service)


@pytest.fixture
def minimal(role: int) -> dict[str, Any]:
    return {"email": unique(), "password": PASSWORD, "role": role}


def make(http: httpx.Client, body: dict[str, Any]) -> int:
    answer = http.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"id"}
    return int(answer.json()["id"])


def shown(http: httpx.Client, user: int, path: str = PATH) -> dict[str, Any]:
    answer = http.get(f"{path}/{user}")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == KEYS
    return dict(answer.json())


def test_what_is_not_said_has_its_default(bare_service: Service, minimal: dict[str, Any]) -> None:
    with bare_service.http as http:
        before = int(time.time())
        made = make(http, minimal)

        user = shown(http, made)
        assert before <= user.pop("created") <= user.pop("updated") <= time.time()
        assert user == {
            "object": "user",
            "id": made,
            "email": minimal["email"],
            "name": None,
            "sub": None,
            "iss": None,
            "role": minimal["role"],
            "organization": None,
            "budget": None,
            "expires": None,
            "priority": 0,
        }


def test_every_field_is_kept_numbers_as_floats_or_texts_too(
    bare_service: Service, minimal: dict[str, Any]
) -> None:
    with bare_service.http as http:
        organization = make_organization(bare_service)
        body = {
            **minimal,
            "name": "Ada",
            "role": str(minimal["role"]),
            "organization": float(organization),
            "budget": "12.3456785",
            "expires": float(FUTURE),
            "priority": 3.0,
            "unknown": {"x": []},
        }
        user = shown(http, make(http, body), STRICT)

        assert (user["name"], user["role"], user["organization"]) == ("Ada", minimal["role"], organization)
        assert (user["budget"], user["expires"], user["priority"]) == (12.345678, FUTURE, 3)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0, 0.0),
        (-0.0, 0.0),
        (0.1, 0.1),
        (1e-6, 1e-6),
        (1e-7, 0.0),
        (1e12, 1e12),
        (123456789.123456, 123456789.123456),
    ],
)
def test_a_budget_keeps_six_decimals(
    bare_service: Service, minimal: dict[str, Any], budget: float, kept: float
) -> None:
    with bare_service.http as http:
        assert shown(http, make(http, {**minimal, "budget": budget}))["budget"] == kept


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budget", -0.000001, "Input should be greater than or equal to 0"),
        ("budget", 1e12 + 1, "Input should be less than or equal to 1000000000000"),
        ("budget", "nan", ""),
        ("budget", "inf", ""),
        ("budget", "-inf", ""),
        ("budget", 10**400, ""),
        ("budget", True, ""),
        ("priority", -1, "Input should be greater than or equal to 0"),
        ("priority", 1 << 63, "Input should be less than or equal to"),
        ("priority", 0.5, ""),
        ("expires", 1, "Value error, Wrong timestamp, must be in the future."),
        ("expires", 0, "Value error, Wrong timestamp, must be in the future."),
        ("expires", -(10**30), "Value error, Wrong timestamp, must be in the future."),
        ("expires", 10**30, "Value error, Wrong timestamp, must be in the future."),
        ("expires", 1999999999.5, ""),
        ("email", "", "String should have at least 1 character"),
        ("email", "x" * 321, "String should have at most 320 characters"),
        ("email", "a\0@example.org", ""),
        ("email", None, ""),
        ("password", "", "String should have at least 1 character"),
        ("password", "x" * 1025, "String should have at most 1024 characters"),
        ("password", 12345678, ""),
        ("name", "x" * 257, "String should have at most 256 characters"),
        ("name", 5, ""),
        ("role", None, ""),
        ("role", "administrator", ""),
        ("organization", 1.5, ""),
    ],
)
def test_a_wrong_field_is_named(
    bare_service: Service, minimal: dict[str, Any], field: str, value: Any, message: str
) -> None:
    with bare_service.http as http:
        made = make(http, {**minimal, "email": unique()})
        before = shown(http, made)
        attempts = [("POST", PATH), ("POST", STRICT)]
        if value is not None:
            attempts.append(("PATCH", f"{PATH}/{made}"))
        for method, path in attempts:
            refused = send(http, method, path, {**minimal, field: value})
            assert refused.status_code == 422, refused.text
            (error,) = refused.json()["detail"]
            assert error["loc"] == ["body", field]
            assert message in error["msg"]
        assert shown(http, made) == before
        assert http.get(PATH, params={"email": minimal["email"]}).status_code == 404


@pytest.mark.parametrize("field", ["email", "password", "role"])
def test_a_missing_field_is_named(bare_service: Service, minimal: dict[str, Any], field: str) -> None:
    del minimal[field]
    with bare_service.http as http:
        refused = http.post(PATH, json=minimal)

    assert refused.status_code == 422
    (error,) = refused.json()["detail"]
    assert (error["loc"], error["type"], error["msg"]) == (["body", field], "missing", "Field required")


@pytest.mark.parametrize("number", [0, -1, 99_999, 1 << 63, 10**30])
def test_an_unknown_role_or_organization_is_not_found(
    bare_service: Service, minimal: dict[str, Any], number: int
) -> None:
    with bare_service.http as http:
        made = make(http, {**minimal, "email": unique()})
        before = shown(http, made)
        for field, text in (("role", "Role not found."), ("organization", "Organization not found.")):
            for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{made}")):
                refused = http.request(method, path, json={**minimal, field: number})
                assert refused.status_code == 404
                assert refused.json()["detail"] == text
        assert shown(http, made) == before


def test_emails_are_unique_to_the_letter_and_one_is_reserved(
    bare_service: Service, minimal: dict[str, Any]
) -> None:
    with bare_service.http as http:
        made = make(http, minimal)
        other = make(http, {**minimal, "email": minimal["email"].lower()})
        make(http, {**minimal, "email": " " + minimal["email"]})

        for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{other}")):
            taken = http.request(method, path, json=minimal)
            assert taken.status_code == 409
            assert taken.json()["detail"] == "User already exists."
            reserved = http.request(method, path, json={**minimal, "email": "master"})
            assert reserved.status_code == 403
            assert reserved.json()["detail"] == "Reserved email."
        assert http.patch(f"{PATH}/{made}", json={"email": minimal["email"]}).status_code == 204


def test_what_a_change_does_not_name_is_kept_or_emptied_as_published(
    bare_service: Service, minimal: dict[str, Any]
) -> None:
    with bare_service.http as http:
        organization = make_organization(bare_service)
        rights = {"organization": organization, "budget": 5, "expires": FUTURE}
        made = make(http, {**minimal, "name": "Ada", "priority": 2, **rights})

        changed = http.patch(f"{PATH}/{made}", json={"budget": 0})
        assert (changed.status_code, changed.content) == (204, b"")
        user = shown(http, made)
        assert (user["organization"], user["budget"], user["expires"]) == (None, 0.0, None)
        assert (user["email"], user["name"], user["priority"]) == (minimal["email"], "Ada", 2)
        nothing = dict.fromkeys(("email", "name", "password", "role", "priority", *rights))
        assert http.patch(f"{PATH}/{made}", json={**rights, "name": "", "priority": 0}).status_code == 204
        user = shown(http, made)
        assert (user["organization"], user["budget"], user["expires"]) == (organization, 5.0, FUTURE)
        assert (user["name"], user["priority"]) == ("", 0)
        assert http.patch(f"{PATH}/{made}", json=nothing).status_code == 204
        user = shown(http, made)
        assert (user["organization"], user["budget"], user["expires"]) == (None, None, None)
        assert (user["email"], user["role"]) == (minimal["email"], minimal["role"])


def test_the_list_is_chosen_ordered_and_cut(bare_service: Service) -> None:
    with bare_service.http as http:
        role, organization = make_role(bare_service), make_organization(bare_service)
        made = [
            make(
                http,
                {
                    "email": unique(),
                    "password": "x",
                    "role": role,
                    "name": letter,
                    "organization": organization,
                },
            )
            for letter in "bcab"
        ]

        def page(**query: Any) -> list[int]:
            answer = http.get(PATH, params=query)
            assert answer.status_code == 200, answer.text
            assert set(answer.json()) == {"object", "data"}
            assert all(set(each) == KEYS for each in answer.json()["data"])
            return [each["id"] for each in answer.json()["data"]]

        assert page(role=role) == page(organization=organization) == made
        by_name = [made[2], made[0], made[3], made[1]]
        assert page(role=role, order_by="name") == by_name
        assert page(role=role, order_by="name", order_direction="desc") == by_name[::-1]
        assert page(role=role, offset=1, limit=2) == made[1:3]
        assert page(role=role, offset=4) == page(role=role, offset=(1 << 63) - 1) == page(role=99_999) == []
        for order_by in ("created", "updated"):
            assert set(page(order_by=order_by, order_direction="desc", limit=4)) == set(made)
        email = shown(http, made[1])["email"]
        assert page(email=email) == page(email=email, role=role) == [made[1]]
        assert page(email=email, offset=1) == []
        # An empty filter is none.
        assert page(email="", role="", organization="", order_direction="desc", limit=4) == made[::-1]
        for query in ({"email": email.upper()}, {"email": "\0"}, {"email": email, "role": role + 99}):
            missing = http.get(PATH, params=query)
            assert missing.status_code == 404
            assert missing.json()["detail"] == "User not found."


@pytest.mark.parametrize(
    "query",
    [
        {"role": "x"},
        {"organization": "none"},
        {"limit": 101},
        {"offset": -1},
        {"order_by": "email"},
        {"role": 10**30},
    ],
)
def test_a_query_out_of_bounds_is_refused(bare_service: Service, query: dict[str, Any]) -> None:
    with bare_service.http as http:
        answer = http.get(PATH, params=query)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", next(iter(query))]


def test_passwords_are_reset_without_the_old_one_but_not_with_a_wrong_one(
    bare_service: Service, minimal: dict[str, Any]
) -> None:
    with bare_service.http as http:
        made = make(http, minimal)
        for path in (f"{PATH}/{made}", f"{STRICT}/{made}"):
            for wrong in ("wrong", "", "x" * 5000):
                body = {"password": "two", "current_password": wrong, "name": "changed"}
                refused = http.patch(path, json=body)
                assert refused.status_code == 401
                assert refused.json()["detail"] == "Invalid current password."
        assert shown(http, made)["name"] is None
        right = {"password": "two", "current_password": PASSWORD}
        assert http.patch(f"{PATH}/{made}", json=right).status_code == 204
        assert http.patch(f"{PATH}/{made}", json=right).status_code == 401
        assert http.patch(f"{PATH}/{made}", json={"password": "three"}).status_code == 204
        # Without a new one there is nothing to check it for.
        assert http.patch(f"{PATH}/{made}", json={"current_password": "wrong"}).status_code == 204


def test_a_deleted_users_keys_die_at_once(bare_service: Service) -> None:
    with bare_service.http as http:
        person = make_person(bare_service)
        with person.http as other:
            assert other.get("/v1/models").status_code == 200
            removed = http.delete(f"{PATH}/{person.id}")
            assert (removed.status_code, removed.content) == (204, b"")
            assert other.get("/v1/models").status_code == 401
        for method in ("GET", "PATCH", "DELETE"):
            gone = http.request(method, f"{PATH}/{person.id}", json={})
            assert gone.status_code == 404
            assert gone.json()["detail"] == "User not found."
        assert make(http, {"email": person.email, "password": "x", "role": person.role}) > person.id


def test_a_deleted_users_routers_are_gone_at_once(bare_service: Service) -> None:
    person = make_person(bare_service, make_role(bare_service, permissions=["admin"]))
    with bare_service.http as http, person.http as other:
        name = f"router-{time.time_ns()}"
        router = other.post("/v1/admin/routers", json={"name": name, "type": "text-generation"}).json()["id"]
        assert http.get(f"/v1/admin/routers/{router}").json()["user_id"] == person.id
        role = make_role(bare_service, limits=[{"router": router, "type": "rpm", "value": 1}])

        assert http.delete(f"{PATH}/{person.id}").status_code == 204
        assert http.get(f"/v1/admin/routers/{router}").status_code == 404
        assert http.get(f"/v1/admin/roles/{role}").json()["limits"] == []


def test_an_expired_user_is_let_in_again_by_a_change(bare_service: Service) -> None:
    with bare_service.http as http:
        role = make_role(bare_service)
        expires = short_life()
        person = make_person(bare_service, role, expires=expires)
        with person.http as other:
            assert other.get("/v1/models").status_code == 200
            outlive(expires)
            assert other.get("/v1/models").status_code == 401
            assert http.patch(f"{PATH}/{person.id}", json={}).status_code == 204
            assert other.get("/v1/models").status_code == 200


def test_the_last_administrator_stays(own_box: Service) -> None:
    role = make_role(own_box)
    with own_box.http as http:
        me = http.get(PATH, params={"email": "administrator@localhost"}).json()["data"][0]
        for method, body in (("DELETE", None), ("PATCH", {"role": role}), ("PATCH", {"expires": FUTURE})):
            refused = http.request(method, f"{PATH}/{me['id']}", json=body)
            assert refused.status_code == 409
            assert "must keep an administrator" in refused.text
        assert http.get(PATH, params={"email": me["email"]}).json()["data"] == [me]


def test_changes_are_in_the_audit_log_and_passwords_are_not(
    bare_service: Service, minimal: dict[str, Any]
) -> None:
    secret = f"secret-{time.time_ns()}"
    with bare_service.http as http:
        made = make(http, {**minimal, "password": secret, "budget": 2.5})
        http.patch(f"{PATH}/{made}", json={"name": "Ada", "password": secret + "2", "budget": 2})
        http.delete(f"{PATH}/{made}")

        log = http.get("/v1/admin/audit", params={"action": "user", "limit": 100})
        lines = [line for line in log.json()["data"] if line["target"] == str(made)]
    assert [line["action"] for line in lines] == ["user.delete", "user.update", "user.create"]
    assert lines[1]["details"] == {"name": "Ada", "password_changed": True, "budget": 2}
    assert lines[2]["details"]["email"] == minimal["email"]
    assert lines[2]["details"]["budget"] == 2.5
    assert secret not in log.text
    assert secret not in bare_service.log.read_text()


@pytest.mark.parametrize("body", no_requests("name"))
def test_what_is_no_request_is_refused(bare_service: Service, minimal: dict[str, Any], body: bytes) -> None:
    with bare_service.http as http:
        made = make(http, minimal)
        assert refuses(http, PATH, made, body)


@pytest.fixture
def target(http: httpx.Client, role: int) -> Iterator[int]:
    target = make(http, {"email": unique(), "password": "x", "role": role})
    yield target
    http.delete(f"{PATH}/{target}")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=bodies(
        email=st.text(max_size=12),
        password=st.text(max_size=5),
        current_password=st.none() | st.text(max_size=5),
        name=st.none() | st.text(max_size=12),
        role=st.integers(0, 3),
        organization=st.none() | st.integers(0, 3),
        budget=st.none() | st.floats(),
        expires=st.none() | st.integers(0, 1 << 40),
        priority=st.none() | st.integers(-1, 5),
    ),
    method=st.sampled_from(["POST", "PATCH"]),
    path=st.sampled_from([PATH, STRICT]),
)
def test_any_json_is_taken_or_refused(
    http: httpx.Client, role: int, target: int, body: Any, method: str, path: str
) -> None:
    if method == "PATCH":
        path = f"{path}/{target}"
    elif isinstance(body, dict):
        body = {"email": unique(), "password": "x", "role": role, **body}
    answer = send(http, method, path, body)
    assert well(answer), answer.text
    if answer.status_code == 201:
        # No administrator that other tests do not know of is left.
        assert http.delete(f"{PATH}/{answer.json()['id']}").status_code == 204
    assert shown(http, target)["role"] > 0


def test_what_was_spent_shows_at_once(service: Service) -> None:
    person = make_person(service, budget=1)
    with service.http as http:
        routers = http.get("/v1/admin/routers", params={"limit": 100}).json()["data"]
        router = next(each["id"] for each in routers if each["name"] == EMBEDDING)
        assert http.patch(f"/v1/admin/routers/{router}", json={"cost_prompt_tokens": 1000}).status_code == 204
        try:
            cost = embed(person)
            assert cost > 0
            assert shown(http, person.id)["budget"] == pytest.approx(1 - cost, abs=1e-9)
            cost += embed(person)
            listed = http.get(PATH, params={"email": person.email}).json()["data"]
            assert listed[0]["budget"] == pytest.approx(1 - cost, abs=1e-9)
            # What was spent before a change is taken from the budget of before.
            embed(person)
            assert http.patch(f"{PATH}/{person.id}", json={"budget": 2}).status_code == 204
            time.sleep(1)
            assert shown(http, person.id)["budget"] == 2
        finally:
            http.patch(f"/v1/admin/routers/{router}", json={"cost_prompt_tokens": 0})


def embed(person: Person) -> float:
    with person.http as http:
        answer = http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "hello"})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["usage"]["cost"])
