"""Users' own keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.people import Person, make_person
from tests.service import Service, running_service


@pytest.fixture(scope="module")
def person(bare_service: Service) -> Person:
    """Make a user with one key."""
    return make_person(bare_service)


@pytest.fixture(scope="module")
def stranger(bare_service: Service) -> Person:
    """Make another user with one key."""
    return make_person(bare_service)


def test_a_user_makes_a_key_for_itself(person: Person) -> None:
    expires = int(time.time()) + 1000
    with person.http as http:
        answer = http.post("/v1/me/keys", json={"name": " laptop ", "expires": float(expires)})
        assert answer.status_code == 201
        made = answer.json()
        shown = http.get(f"/v1/me/keys/{made['id']}").json()

    assert made == {"id": made["id"], "token": made["key"], "key": made["key"]}
    assert made["key"].startswith("sk-")
    assert shown == {
        "object": "key",
        "id": made["id"],
        "name": " laptop ",
        "token": f"{made['key'][:8]}...{made['key'][-8:]}",
        "expires": expires,
        "created": shown["created"],
    }


def test_a_name_may_be_empty_or_taken(person: Person) -> None:
    with person.http as http:
        made = [http.post("/v1/me/keys", json={"name": name}) for name in ("", "same", "same", "x" * 128)]

    assert [each.status_code for each in made] == [201] * 4
    assert len({each.json()["id"] for each in made}) == 4


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": None},
        {"name": 1},
        {"name": "x" * 129},
        {"name": "x", "expires": 5},
        {"name": "x", "expires": True},
        "x",
    ],
)
def test_wrong_fields_are_listed(person: Person, body: Any) -> None:
    with person.http as http:
        answer = http.post("/v1/me/keys", json=body)

    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


def test_the_list_has_ones_own_keys_alone(bare_service: Service, stranger: Person) -> None:
    person = make_person(bare_service)
    with person.http as http:
        first = http.post("/v1/me/keys", json={"name": "b"}).json()["id"]
        second = http.post("/v1/me/keys", json={"name": "a"}).json()["id"]
        everyone = http.get("/v1/me/keys").json()
        by_name = http.get("/v1/me/keys", params={"order_by": "name", "limit": 2, "offset": 0}).json()
        assert http.get("/v1/me/keys", params={"order_by": "user"}).status_code == 422

    assert everyone["object"] == "list"
    assert [each["id"] for each in everyone["data"]] == [person.key_id, first, second]
    assert [each["id"] for each in by_name["data"]] == [second, first]


def test_a_deleted_key_is_dead_at_once(person: Person) -> None:
    with person.http as http:
        made = http.post("/v1/me/keys", json={"name": "short"}).json()
        headers = {"Authorization": f"Bearer {made['key']}"}
        assert http.get("/v1/me/info", headers=headers).status_code == 200
        assert http.delete(f"/v1/me/keys/{made['id']}").status_code == 204
        assert http.get("/v1/me/info", headers=headers).status_code == 401
        assert http.get("/opengatellm/v1/me/info", headers=headers).status_code == 403
        assert http.get(f"/v1/me/keys/{made['id']}").json()["detail"] == "Token not found."
        assert http.delete(f"/v1/me/keys/{made['id']}").status_code == 404


def test_the_keys_of_others_are_not_found(person: Person, stranger: Person) -> None:
    with person.http as http:
        path = f"/v1/me/keys/{stranger.key_id}"
        answers = [http.get(path), http.delete(path), http.post(f"{path}/regenerate")]

    assert [each.status_code for each in answers] == [404] * 3
    assert {each.json()["detail"] for each in answers} == {"Token not found."}
    with stranger.http as http:
        assert http.get("/v1/me/info").status_code == 200


def test_a_key_can_regenerate_itself(bare_service: Service) -> None:
    person = make_person(bare_service)
    with person.http as http:
        new = http.post(f"/v1/me/keys/{person.key_id}/regenerate")
        assert new.status_code == 200
        assert http.get("/v1/me/info").status_code == 401
        headers = {"Authorization": f"Bearer {new.json()['key']}"}
        shown = http.get(f"/v1/me/keys/{person.key_id}", headers=headers).json()

    assert new.json() == {"id": person.key_id, "token": new.json()["key"], "key": new.json()["key"]}
    assert shown["name"] == "test"


def test_the_master_key_of_opengatellms_mount_has_no_keys(bare_service: Service) -> None:
    with bare_service.http as http:
        made = http.post("/opengatellm/v1/me/keys", json={"name": "x"})
        own = http.get("/v1/me/keys").json()["data"]

        assert made.status_code == 404
        assert made.json() == {"detail": "User not found."}
        assert http.get("/opengatellm/v1/me/keys").json() == {"object": "list", "data": []}
        assert http.get(f"/opengatellm/v1/me/keys/{own[0]['id']}").status_code == 404
        assert http.delete(f"/opengatellm/v1/me/keys/{own[0]['id']}").status_code == 404


def test_a_regenerated_bootstrap_key_is_still_the_master_key_also_after_a_restart(tmp_path: Path) -> None:
    with running_service(tmp_path / "data") as service, service.http as http:
        own = http.get("/v1/me/keys").json()["data"][0]
        new = http.post(f"/v1/me/keys/{own['id']}/regenerate").json()["key"]
        service.process.kill()
        service.process.wait()
    with running_service(tmp_path / "data") as service, service.http as http:
        # The file's key is read at the first boot alone: the text it has is dead.
        assert http.get("/v1/me/info").status_code == 401
        http.headers["Authorization"] = f"Bearer {new}"
        assert http.get("/opengatellm/v1/me/info").json()["id"] == 0
