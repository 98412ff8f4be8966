"""Administrators' tokens: the keys of all users."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.people import Person, make_person, make_role, outlive, short_life
from tests.service import Service, running_service

DAY = 86_400


@pytest.fixture(scope="module")
def person(bare_service: Service) -> Person:
    """Make a user with one key."""
    return make_person(bare_service)


def make_token(service: Service, user: int, **fields: Any) -> dict[str, Any]:
    with service.http as http:
        answer = http.post("/v1/admin/tokens", json={"name": "made", "user": user, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def works(service: Service, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{service.base_url}/v1/me/info", headers=headers).status_code == 200


def test_a_token_is_shown_whole_once_and_masked_from_then_on(bare_service: Service, person: Person) -> None:
    expires = int(time.time()) + DAY
    made = make_token(bare_service, person.id, name="  laptop ", expires=expires, password="ignored")
    with bare_service.http as http:
        shown = http.get(f"/v1/admin/tokens/{made['id']}").json()

    assert set(made) == {"id", "token"}
    assert works(bare_service, made["token"])
    assert shown == {
        "object": "token",
        "id": made["id"],
        "name": "laptop",
        "token": f"{made['token'][:8]}...{made['token'][-8:]}",
        "user": person.id,
        "expires": expires,
        "created": shown["created"],
    }
    assert abs(shown["created"] - time.time()) < 60


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
def test_a_deleted_token_is_dead_and_gone(bare_service: Service, person: Person, mount: str) -> None:
    made = make_token(bare_service, person.id)
    with bare_service.http as http:
        path = f"{mount}/admin/tokens/{made['id']}"
        assert http.get(path).status_code == 200
        assert http.delete(path, params={"user": person.id + 1}).status_code == 404
        deleted = http.delete(path)
        assert (deleted.status_code, deleted.content) == (204, b"")
        for again in (http.get(path), http.delete(path)):
            assert again.status_code == 404
            assert again.json()["detail"] == "Token not found."
    assert not works(bare_service, made["token"])


def test_the_owner_may_be_named_in_a_deletion(bare_service: Service, person: Person) -> None:
    made = make_token(bare_service, person.id)
    with bare_service.http as http:
        answer = http.delete(f"/v1/admin/tokens/{made['id']}", params={"user": person.id})

    assert answer.status_code == 204


def test_a_regenerated_token_keeps_all_but_its_text(bare_service: Service, person: Person) -> None:
    made = make_token(bare_service, person.id, name="kept", expires=int(time.time()) + DAY)
    with bare_service.http as http:
        path = f"/v1/admin/tokens/{made['id']}"
        before = http.get(path).json()
        answer = http.post(f"{path}/regenerate")
        after = http.get(path).json()

    assert answer.status_code == 200
    new = answer.json()
    assert new == {"id": made["id"], "token": new["token"], "key": new["token"]}
    assert not works(bare_service, made["token"])
    assert works(bare_service, new["token"])
    assert after == before | {"token": f"{new['token'][:8]}...{new['token'][-8:]}"}


def test_regeneration_is_no_part_of_the_published_api(bare_service: Service, person: Person) -> None:
    with bare_service.http as http:
        assert http.post(f"/opengatellm/v1/admin/tokens/{person.key_id}/regenerate").status_code == 404
        assert http.post(f"/opengatellm/v1/me/keys/{person.key_id}/regenerate").status_code == 404
        assert http.post("/v1/admin/tokens/999999/regenerate").status_code == 404


def test_the_list_is_ordered_paged_and_narrowed(bare_service: Service) -> None:
    person = make_person(bare_service)
    for name in ("b", "a", "a"):
        make_token(bare_service, person.id, name=name)

    def ids(**query: Any) -> list[int]:
        with bare_service.http as http:
            answer = http.get("/v1/admin/tokens", params={"user": person.id, **query})
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"object", "data"}
        assert answer.json()["object"] == "list"
        return [each["id"] for each in answer.json()["data"]]

    everyone = ids()
    assert everyone == sorted(everyone)
    first, b, a1, a2 = everyone
    assert first == person.key_id
    assert ids(order_by="name") == [a1, a2, b, first]
    assert ids(order_by="name", order_direction="desc") == [first, b, a2, a1]
    assert ids(order_by="created", order_direction="desc") == [a2, a1, b, first]
    assert ids(offset=1, limit=2) == [b, a1]
    assert ids(offset=2**62) == []
    with bare_service.http as http:
        everybody = http.get("/v1/admin/tokens", params={"limit": 100}).json()["data"]
    assert {each["user"] for each in everybody} > {person.id}


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"offset": -1},
        {"offset": 10**30},
        {"order_by": "updated"},
        {"order_direction": "up"},
        {"user": "x"},
        {"user": 10**30},
    ],
)
def test_a_list_refuses_what_is_out_of_bounds(bare_service: Service, query: dict[str, Any]) -> None:
    with bare_service.http as http:
        answer = http.get("/v1/admin/tokens", params=query)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", next(iter(query))]


@pytest.mark.parametrize("expires", [0, -1, 1, 10**30, int(time.time()) - 10])
def test_an_expiry_lies_in_the_future(bare_service: Service, person: Person, expires: int) -> None:
    with bare_service.http as http:
        body = {"name": "x", "user": person.id, "expires": expires}
        answer = http.post("/opengatellm/v1/admin/tokens", json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "expires"]
    assert answer.json()["detail"][0]["msg"] == "Value error, Wrong timestamp, must be in the future."


@pytest.mark.parametrize("lax", [float, str])
def test_numbers_are_taken_as_clients_write_them(bare_service: Service, person: Person, lax: type) -> None:
    expires = int(time.time()) + DAY
    body = {"name": "x", "user": lax(person.id), "expires": lax(expires)}
    with bare_service.http as http:
        made = http.post("/v1/admin/tokens", json=body)
        assert made.status_code == 201, made.text
        assert http.get(f"/v1/admin/tokens/{made.json()['id']}").json()["expires"] == expires


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"user": 1},
        {"name": " ", "user": 1},
        {"name": "x" * 129, "user": 1},
        {"name": None, "user": 1},
        {"name": "x", "user": None},
        {"name": "x", "user": 1.5},
        {"name": "x", "user": 1, "expires": "soon"},
        {"name": "a\0b", "user": 1},
        [],
    ],
)
def test_wrong_fields_are_listed(bare_service: Service, body: Any) -> None:
    with bare_service.http as http:
        answer = http.post("/v1/admin/tokens", json=body)

    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


@pytest.mark.parametrize("user", [0, -1, 999_999, 2**63, 10**40])
def test_nobody_elses_user_gets_a_token(bare_service: Service, user: int) -> None:
    with bare_service.http as http:
        answer = http.post("/v1/admin/tokens", json={"name": "x", "user": user})

    assert answer.status_code == 404
    assert answer.json()["detail"] == "User not found."


@pytest.mark.parametrize("token", ["0", "999999", str(2**63), "1" * 50, "-1"])
def test_an_unknown_token_is_not_found(bare_service: Service, token: str) -> None:
    with bare_service.http as http:
        assert http.get(f"/v1/admin/tokens/{token}").status_code == 404
        assert http.delete(f"/v1/admin/tokens/{token}").status_code == 404


def test_a_token_that_is_no_number_is_a_wrong_path(bare_service: Service) -> None:
    with bare_service.http as http:
        answer = http.get("/v1/admin/tokens/x")

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["path", "token"]


def test_an_expired_token_is_neither_accepted_nor_listed_nor_found(bare_service: Service) -> None:
    person = make_person(bare_service)
    expires = short_life()
    made = make_token(bare_service, person.id, expires=expires)
    assert works(bare_service, made["token"])
    outlive(expires)

    assert not works(bare_service, made["token"])
    with bare_service.http as http:
        listed = http.get("/v1/admin/tokens", params={"user": person.id}).json()["data"]
        assert [each["id"] for each in listed] == [person.key_id]
        assert http.get(f"/v1/admin/tokens/{made['id']}").status_code == 404
        assert http.delete(f"/v1/admin/tokens/{made['id']}").status_code == 404
        assert http.post(f"/v1/admin/tokens/{made['id']}/regenerate").status_code == 404


def test_others_than_administrators_are_refused(bare_service: Service, person: Person) -> None:
    with person.http as http:
        requests = [
            http.post("/v1/admin/tokens", json={"name": "x", "user": person.id}),
            http.get("/v1/admin/tokens"),
            http.get(f"/v1/admin/tokens/{person.key_id}"),
            http.delete(f"/v1/admin/tokens/{person.key_id}"),
            http.post(f"/v1/admin/tokens/{person.key_id}/regenerate"),
        ]

    assert [each.status_code for each in requests] == [403] * 5


def test_the_longest_life_bounds_every_new_key(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", APPLIANCE_KEY_MAX_DAYS="30") as service, service.http as http:
        now = int(time.time())
        role = make_role(service)
        user = http.post("/v1/admin/users", json={"email": "a", "password": "p", "role": role}).json()["id"]
        unlimited = make_token(service, user)
        inside = make_token(service, user, expires=now + 30 * DAY - 60)
        for path, body in (
            ("/v1/admin/tokens", {"name": "x", "user": 999_999}),
            ("/v1/me/keys", {"name": "x"}),
        ):
            beyond = http.post(path, json={**body, "expires": now + 30 * DAY + 60})
            # The user is not even looked for.
            assert beyond.status_code == 400
            text = "Token expiration timestamp cannot be greater than 30 days from now."
            assert beyond.json()["error"]["message"] == text
        expiry = http.get(f"/v1/admin/tokens/{unlimited['id']}").json()["expires"]
        kept = http.get(f"/v1/admin/tokens/{inside['id']}").json()["expires"]

    assert abs(expiry - (now + 30 * DAY)) < 60
    assert kept == now + 30 * DAY - 60


def test_every_change_is_in_the_audit_log_without_the_key(bare_service: Service, person: Person) -> None:
    made = make_token(bare_service, person.id, name="audited")
    with bare_service.http as http:
        new = http.post(f"/v1/admin/tokens/{made['id']}/regenerate").json()
        http.delete(f"/v1/admin/tokens/{made['id']}")
        lines = http.get("/v1/admin/audit", params={"limit": 100})

    mine = [each for each in lines.json()["data"] if each["target"] == str(made["id"])]
    actions = [each["action"] for each in mine if each["action"].startswith("key.")]
    assert actions == ["key.delete", "key.regenerate", "key.create"]
    assert made["token"] not in lines.text
    assert new["token"] not in lines.text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150,
    deadline=None,
    database=None,
)
@given(body=_json | st.fixed_dictionaries({"name": _json, "user": _json, "expires": _json}))
def test_no_body_is_an_error_of_the_server(bare_service: Service, body: Any) -> None:
    with bare_service.http as http:
        for path in ("/v1/admin/tokens", "/v1/me/keys"):
            assert http.post(path, json=body).status_code in {201, 400, 404, 422}
