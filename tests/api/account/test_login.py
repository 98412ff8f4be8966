"""Logging in over HTTP. Every test that fails on purpose comes from an address of its own."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.people import LIFE_SECONDS, PASSWORD, Person, make_person, make_role, outlive, post_id, short_life
from tests.service import PLAIN, Service, running_service


def client(service: Service, address: str) -> httpx.Client:
    """Return a client without a key that comes from one of this machine's own addresses (127.0.0.0/8)."""
    return httpx.Client(
        base_url=service.base_url,
        transport=httpx.HTTPTransport(verify=PLAIN, local_address=address),
        timeout=60,
    )


def login(http: httpx.Client, email: Any, password: Any, mount: str = "/v1") -> httpx.Response:
    return http.post(f"{mount}/auth/login", json={"email": email, "password": password})


def status_with(service: Service, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{service.base_url}/v1/me/info"
    return httpx.get(url, headers=headers, verify=PLAIN, timeout=60).status_code


@pytest.fixture(scope="module")
def person(bare_service: Service) -> Person:
    """Make a user with a password."""
    return make_person(bare_service)


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
def test_a_login_gives_a_key_and_ends_the_one_before(
    bare_service: Service, person: Person, mount: str
) -> None:
    with client(bare_service, "127.0.1.1") as http:
        first = login(http, person.email, PASSWORD, mount)
        second = login(http, person.email, PASSWORD, mount)

    assert first.status_code == second.status_code == 200
    assert set(second.json()) == {"id", "key"}
    assert status_with(bare_service, first.json()["key"]) == 401
    assert status_with(bare_service, second.json()["key"]) == 200
    assert status_with(bare_service, person.key) == 200
    headers = {"Authorization": f"Bearer {second.json()['key']}"}
    with client(bare_service, "127.0.1.1") as http:
        shown = http.get(f"/v1/me/keys/{second.json()['id']}", headers=headers).json()
    assert shown["name"] == "playground"
    assert 3500 < shown["expires"] - time.time() <= 3601


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
def test_every_failure_is_one_and_the_same_answer(bare_service: Service, person: Person, mount: str) -> None:
    with client(bare_service, f"127.0.2.{len(mount)}") as http:
        answers = [
            login(http, email, password, mount)
            for email, password in (
                (person.email, "wrong"),
                ("unknown@example.org", PASSWORD),
                ("administrator@localhost", "no password is set"),
                ("master", "not the key"),
                (person.email, "x" * 3000),
            )
        ]

    assert [answer.status_code for answer in answers] == [401] * 5
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["detail"] == "Invalid current password."


def test_the_master_login_belongs_to_opengatellms_mount(bare_service: Service) -> None:
    with client(bare_service, "127.0.3.1") as http:
        made = login(http, "master", bare_service.key, "/opengatellm/v1")
        elsewhere = login(http, "master", bare_service.key)

    assert made.status_code == 200
    assert made.json() == {"id": 0, "key": bare_service.key}
    assert elsewhere.status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "a"},
        {"password": "a"},
        {"email": "", "password": "a"},
        {"email": "a", "password": ""},
        {"email": None, "password": "a"},
        {"email": ["a"], "password": {}},
        {"email": "a\0", "password": "a"},
        {"email": "a" * 5000, "password": "a"},
        {"email": "a", "password": "a" * 1_000_000},
        [],
        None,
    ],
)
def test_wrong_fields_are_listed_and_no_failures(bare_service: Service, body: Any) -> None:
    with client(bare_service, "127.0.4.1") as http:
        answers = [http.post("/v1/auth/login", json=body) for _ in range(6)]

    assert {answer.status_code for answer in answers} == {422}
    assert isinstance(answers[0].json()["detail"], list)


def test_guessing_is_answered_429_and_others_still_get_in(bare_service: Service, person: Person) -> None:
    with client(bare_service, "127.0.5.1") as stranger, client(bare_service, "127.0.5.2") as owner:
        statuses = [login(stranger, person.email, "wrong").status_code for _ in range(5)]
        refused = login(stranger, person.email, PASSWORD)
        assert statuses == [401] * 5
        assert refused.status_code == 429
        wait = int(refused.headers["retry-after"])
        assert 1 <= wait <= 2
        assert refused.json()["error"]["message"] == f"Too many failed logins. Try again in {wait} seconds."
        assert login(owner, person.email, PASSWORD).status_code == 200
        time.sleep(wait)
        assert login(stranger, person.email, PASSWORD).status_code == 200


def test_the_count_survives_a_kill(tmp_path: Path) -> None:
    with running_service(tmp_path / "data") as service, client(service, "127.0.6.1") as http:
        before = [login(http, "a@example.org", "wrong").status_code for _ in range(5)]
        service.process.kill()
        service.process.wait()
    with running_service(tmp_path / "data") as service, client(service, "127.0.6.1") as http:
        # The wait may be over by now, but one failure more begins the next.
        after = [login(http, "a@example.org", "wrong").status_code for _ in range(2)]

    assert before == [401] * 5
    assert after[-1] == 429


def test_an_expired_user_may_log_in_and_then_only_read_about_itself(bare_service: Service) -> None:
    with bare_service.http as admin:
        role = make_role(bare_service)
        expires = short_life()
        body = {"email": "short@example.org", "password": PASSWORD, "role": role, "expires": expires}
        user = post_id(bare_service, "/v1/admin/users", body)
        assert admin.get(f"/v1/admin/users/{user}").status_code == 200
    outlive(expires)
    with client(bare_service, "127.0.7.1") as http:
        made = login(http, "short@example.org", PASSWORD)
        assert made.status_code == 200
        http.headers["Authorization"] = f"Bearer {made.json()['key']}"
        assert http.get("/v1/me/info").json()["id"] == user
        assert http.get("/opengatellm/v1/me/info").status_code == 200
        others = [
            http.patch("/v1/me/info", json={"name": "x"}),
            http.get("/v1/me/keys"),
            http.post("/v1/me/keys", json={"name": "x"}),
            http.get("/v1/models"),
        ]
        assert [each.status_code for each in others] == [401] * 4
        assert http.get("/opengatellm/v1/me/keys").status_code == 403


def test_the_life_of_a_session_is_a_setting(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", APPLIANCE_SESSION_SECONDS=str(LIFE_SECONDS)) as service:
        person = make_person(service)
        with client(service, "127.0.8.1") as http:
            made = login(http, person.email, PASSWORD).json()
        expires = short_life() + 1  # not later than that
        assert status_with(service, made["key"]) == 200
        outlive(expires)
        assert status_with(service, made["key"]) == 401


def test_a_flood_of_logins_neither_stops_the_service_nor_lets_a_guess_through(
    bare_service: Service, person: Person
) -> None:
    def guess(number: int) -> int:
        with client(bare_service, f"127.0.9.{number % 50 + 1}") as http:
            return login(http, f"flood-{number}@example.org", "wrong").status_code

    with concurrent.futures.ThreadPoolExecutor(60) as threads:
        guesses = [threads.submit(guess, number) for number in range(80)]
        while not all(each.done() for each in guesses):
            assert status_with(bare_service, person.key) == 200
            time.sleep(0.05)

    statuses = [each.result() for each in guesses]
    assert set(statuses) <= {401, 429, 503}
    assert 401 in statuses
