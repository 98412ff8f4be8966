"""One's own account: what it shows, and what its owner may change."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.people import PASSWORD, Person, make_person, make_role, post_id
from tests.service import Service

KEYS = {
    *("object", "id", "email", "name", "organization", "budget", "permissions", "limits", "expires"),
    *("priority", "created", "updated"),
}


def info(person: Person, mount: str = "/v1") -> dict[str, Any]:
    with person.http as http:
        answer = http.get(f"{mount}/me/info")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def change(person: Person, **fields: Any) -> httpx.Response:
    with person.http as http:
        return http.patch("/v1/me/info", json=fields)


def session(person: Person, password: str = PASSWORD) -> str:
    with person.http as http:
        answer = http.post("/v1/auth/login", json={"email": info(person)["email"], "password": password})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["key"])


def status_with(service: Service, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{service.base_url}/v1/me/info", headers=headers).status_code


@pytest.fixture
def person(bare_service: Service) -> Person:
    """Make a user of an organization, with a budget and an end."""
    with bare_service.http as http:
        name = f"organization-{time.time_ns()}"
        organization = http.post("/v1/admin/organizations", json={"name": name}).json()["id"]
    role = make_role(bare_service, permissions=["read_metric", "create_public_collection"], limits=[])
    return make_person(
        bare_service,
        role,
        name="Ada",
        organization=organization,
        budget=12.345678,
        expires=int(time.time()) + 86_400,
        priority=3,
    )


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
def test_the_info_has_everything_about_a_user(person: Person, mount: str) -> None:
    shown = info(person, mount)

    assert set(shown) == KEYS
    assert shown["object"] == "userInfo"
    assert (shown["id"], shown["email"], shown["name"]) == (person.id, person.email, "Ada")
    assert shown["budget"] == 12.345678
    assert shown["permissions"] == ["create_public_collection", "read_metric"]
    assert shown["priority"] == 3
    assert shown["organization"] > 0
    assert abs(shown["expires"] - time.time() - 86_400) < 60
    assert abs(shown["created"] - time.time()) < 60
    assert shown["limits"] == []


def test_a_user_of_nothing_has_nulls(bare_service: Service) -> None:
    shown = info(make_person(bare_service))

    assert [shown[name] for name in ("name", "organization", "budget", "expires")] == [None] * 4
    assert (shown["permissions"], shown["priority"]) == ([], 0)


def test_limits_are_shown_but_for_those_of_zero(bare_service: Service) -> None:
    with bare_service.http as http:
        body = {"name": f"router-{time.time_ns()}", "type": "text-generation"}
        router = post_id(bare_service, "/v1/admin/routers", body)
        values = {"rpm": 5, "rpd": None, "tpm": 0, "tpd": 7}
        limits = [{"router": router, "type": kind, "value": value} for kind, value in values.items()]
        person = make_person(bare_service, make_role(bare_service, limits=limits))
        shown = info(person)["limits"]
        master = http.get("/opengatellm/v1/me/info").json()
        assert http.delete(f"/v1/admin/routers/{router}").status_code == 200

    by_type = {each["type"]: each for each in shown}
    assert by_type == {
        kind: {"router": router, "type": kind, "value": values[kind]} for kind in ("rpm", "rpd", "tpd")
    }
    unlimited = {(each["router"], each["type"], each["value"]) for each in master["limits"]}
    assert {(router, kind, None) for kind in ("rpm", "rpd", "tpm", "tpd")} <= unlimited


def test_the_master_key_is_user_zero_on_opengatellms_mount_alone(bare_service: Service) -> None:
    with bare_service.http as http:
        master = http.get("/opengatellm/v1/me/info").json()
        refused = http.patch("/opengatellm/v1/me/info", json={"name": "x"})
        administrator = http.get("/v1/me/info").json()

    assert set(master) == KEYS
    assert (master["id"], master["email"], master["name"]) == (0, "master", "master")
    assert (master["organization"], master["created"], master["updated"]) == (0, 0, 0)
    assert (master["budget"], master["expires"], master["priority"]) == (None, None, 0)
    assert set(master["permissions"]) == {
        "admin",
        "create_public_collection",
        "read_metric",
        "provide_models",
    }
    assert refused.status_code == 404
    assert refused.json() == {"detail": "User not found."}
    assert administrator["id"] == 1


def test_a_change_of_the_name_leaves_all_else_as_it_is(person: Person) -> None:
    before = info(person)
    answer = change(person, name="Grace")

    assert (answer.status_code, answer.content) == (204, b"")
    assert info(person) == before | {"name": "Grace", "updated": info(person)["updated"]}


def test_nobody_gives_itself_rights_or_budget(person: Person) -> None:
    before = info(person)
    with person.http as http:
        body = {"budget": 1e6, "role": 1, "expires": None, "organization": None, "priority": 9, "name": None}
        assert http.patch("/v1/me/info", json=body).status_code == 204

    assert info(person) == before | {"updated": info(person)["updated"]}


def test_a_new_password_needs_the_present_one_and_ends_the_sessions(
    bare_service: Service, person: Person
) -> None:
    key = session(person)

    for wrong in ({}, {"current_password": "wrong"}, {"current_password": None}):
        refused = change(person, password="new one", **wrong)
        assert refused.status_code == 401
        assert refused.json()["detail"] == "Invalid current password."
    assert status_with(bare_service, key) == 200
    assert change(person, password="new one", current_password=PASSWORD).status_code == 204
    assert status_with(bare_service, key) == 401
    assert status_with(bare_service, person.key) == 200
    assert status_with(bare_service, session(person, "new one")) == 200


def test_a_new_email_needs_the_present_password(person: Person) -> None:
    email = f"new-{time.time_ns()}@example.org"

    assert change(person, email=email).status_code == 401
    assert change(person, email=email, current_password="wrong").status_code == 401
    assert change(person, email=person.email).status_code == 204
    assert change(person, email=email, current_password=PASSWORD).status_code == 204
    assert info(person)["email"] == email
    assert session(person)


def test_a_wrong_password_is_told_also_where_none_is_needed(person: Person) -> None:
    assert change(person, name="x", current_password="wrong").status_code == 401
    assert info(person)["name"] == "Ada"


def test_emails_of_others_and_the_reserved_one_are_refused(bare_service: Service, person: Person) -> None:
    other = make_person(bare_service)
    taken = change(person, email=other.email, current_password=PASSWORD)
    reserved = change(person, email="master", current_password=PASSWORD)

    assert (taken.status_code, taken.json()["message"]) == (409, "User already exists.")
    assert (reserved.status_code, reserved.json()["detail"]) == (403, "Reserved email.")
    assert info(person)["email"] == person.email


@pytest.mark.parametrize(
    "body",
    [
        {"email": ""},
        {"email": "x" * 321},
        {"email": 1},
        {"password": ""},
        {"password": "x" * 1025},
        {"name": ["x"]},
        {"name": "x" * 257},
        {"name": "\0"},
        {"current_password": 5},
        [],
        "x",
    ],
)
def test_wrong_fields_are_listed(person: Person, body: Any) -> None:
    with person.http as http:
        answer = http.patch("/v1/me/info", json=body)

    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


def test_who_else_has_an_account_cannot_be_tried_out(bare_service: Service, person: Person) -> None:
    others = [make_person(bare_service).email for _ in range(6)]

    answers = [change(person, email=email, current_password=PASSWORD) for email in others]

    assert [answer.status_code for answer in answers] == [409] * 5 + [429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert change(person, name="Grace").status_code == 204  # what asks for no e-mail goes on
