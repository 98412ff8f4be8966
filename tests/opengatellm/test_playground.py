"""The calls that OpenGateLLM's Playground makes, page by page."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.opengatellm.gate import PASSWORD, Client, body_of, limits, refusal, unique, user_of

PAGE = {"offset": 0, "limit": 10, "order_by": "id", "order_direction": "asc"}
LIMIT_KINDS = {"tpm", "tpd", "rpm", "rpd"}


@pytest.fixture(scope="module")
def person(master: Client) -> Client:
    """Return a user that may use one model."""
    router = master.make("/admin/routers", name=unique("model"), type="text-generation")["id"]
    return user_of(master, role_limits=limits(router, rpm=10), name="Ada", budget=3.5, priority=2)


def test_a_login_shows_who_one_is(person: Client) -> None:
    session = body_of(person.post("/auth/login", {"email": person.email, "password": PASSWORD}))
    info = Client(person.service, session["key"]).read("/me/info")

    assert info.pop("created") <= info.pop("updated") <= time.time()
    assert {limit["type"] for limit in info["limits"]} == LIMIT_KINDS
    assert all(set(limit) == {"router", "type", "value"} for limit in info.pop("limits"))
    assert info == {
        "object": "userInfo",
        "id": person.user,
        "email": person.email,
        "name": "Ada",
        "organization": None,
        "budget": 3.5,
        "permissions": [],
        "expires": None,
        "priority": 2,
    }
    shown = person.read(f"/me/keys/{session['id']}")
    assert shown["name"] == "playground"
    assert 3590 <= shown["expires"] - time.time() <= 3601


@pytest.mark.parametrize(
    "credentials",
    [{"email": "nobody@example.org", "password": PASSWORD}, {"email": "?", "password": "wrong"}],
    ids=["unknown user", "wrong password"],
)
def test_a_login_fails_with_one_text(person: Client, credentials: dict[str, str]) -> None:
    if credentials["email"] == "?":
        credentials = {**credentials, "email": person.email}

    assert refusal(person.post("/auth/login", credentials), 401) == "Invalid current password."


def test_a_name_and_a_password_are_changed_and_nothing_else(master: Client) -> None:
    person = user_of(master, name="Ada", budget=3.5, expires=int(time.time()) + 3600)
    person.change("/me/info", name="Grace", budget=None, expires=None, role=1)
    person.change("/me/info", current_password=PASSWORD, password="another")

    info = person.read("/me/info")
    assert (info["name"], info["budget"]) == ("Grace", 3.5)
    assert info["expires"] is not None
    wrong = {"current_password": PASSWORD, "password": "x"}
    assert refusal(person.patch("/me/info", wrong), 401) == "Invalid current password."
    body_of(person.post("/auth/login", {"email": person.email, "password": "another"}))
    taken = {"email": "master", "current_password": "another"}
    assert refusal(person.patch("/me/info", taken), 403) == "Reserved email."


def test_keys_are_made_listed_and_deleted(master: Client) -> None:
    person = user_of(master)
    expires = float(int(time.time()) + 3600)
    made = [person.make("/me/keys", name=name, expires=expires) for name in ("b", "a", "c")]

    listed = person.read("/me/keys", **PAGE)
    assert listed["object"] == "list"
    assert [key["name"] for key in listed["data"]] == ["token", "b", "a", "c"]
    first = next(key for key in listed["data"] if key["id"] == made[0]["id"])
    assert first.pop("created") <= time.time()
    text = made[0]["token"]
    assert first == {
        "object": "key",
        "id": made[0]["id"],
        "name": "b",
        "token": f"{text[:8]}...{text[-8:]}",
        "expires": int(expires),
    }
    by_name = person.read("/me/keys", order_by="name", order_direction="desc", limit=2)["data"]
    assert [key["name"] for key in by_name] == ["token", "c"]
    person.remove(f"/me/keys/{made[0]['id']}")
    assert refusal(person.get(f"/me/keys/{made[0]['id']}"), 404) == "Token not found."
    assert refusal(person.delete(f"/me/keys/{made[0]['id']}"), 404) == "Token not found."
    answer = Client(person.service, text).get("/me/info")
    assert refusal(answer, 403) == "Invalid API key."


def test_the_keys_of_others_are_not_found(master: Client, person: Client) -> None:
    stranger = user_of(master)
    theirs = stranger.make("/me/keys", name="theirs")["id"]

    assert refusal(person.get(f"/me/keys/{theirs}"), 404) == "Token not found."
    assert refusal(person.delete(f"/me/keys/{theirs}"), 404) == "Token not found."


def test_an_expiry_lies_in_the_future(person: Client) -> None:
    (wrong,) = refusal(person.post("/me/keys", {"name": "old", "expires": int(time.time()) - 1}), 422)

    assert (wrong["loc"], wrong["type"]) == (["body", "expires"], "value_error")
    assert wrong["msg"] == "Value error, Wrong timestamp, must be in the future."


@pytest.mark.parametrize(
    ("path", "orders"),
    [
        ("/admin/users", ("id", "name", "created", "updated")),
        ("/admin/roles", ("id", "name", "created", "updated")),
        ("/admin/organizations", ("id", "name", "created", "updated")),
        ("/admin/tokens", ("id", "name", "created")),
        ("/admin/providers", ("id", "model_name", "created")),
        ("/me/keys", ("id", "name", "created")),
    ],
)
def test_lists_are_pages_in_every_order(administrator: Client, path: str, orders: tuple[str, ...]) -> None:
    for number in range(3):
        administrator.make("/admin/organizations", name=unique(f"paged{number}"))
        user_of(administrator, name=unique("paged"))
        administrator.make("/me/keys", name=unique("paged"))
    for order in orders:
        rising = administrator.read(path, order_by=order, order_direction="asc", limit=100)
        falling = administrator.read(path, order_by=order, order_direction="desc", limit=100)
        assert set(rising) == {"object", "data"}
        values = [each[order] for each in rising["data"] if each[order] is not None]
        assert values == sorted(values)
        values = [each[order] for each in falling["data"] if each[order] is not None]
        assert values == sorted(values, reverse=True)
    every = administrator.read(path, limit=100)["data"]
    assert administrator.read(path, offset=1, limit=2)["data"] == every[1:3]
    assert len(administrator.read(path)["data"]) <= 10
    assert administrator.read(path, offset=100_000)["data"] == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": 0}, "Input should be greater than or equal to 1"),
        ({"limit": 101}, "Input should be less than or equal to 100"),
        ({"offset": -1}, "Input should be greater than or equal to 0"),
        ({"limit": "many"}, "Input should be a valid integer, unable to parse string as an integer"),
        ({"order_direction": "up"}, "Input should be 'asc' or 'desc'"),
        ({"order_by": "secret"}, "Input should be 'id', 'name', 'created' or 'updated'"),
    ],
)
@pytest.mark.parametrize("path", ["/admin/users", "/admin/roles", "/admin/organizations"])
def test_pages_out_of_bounds_are_422(admin: Client, path: str, query: dict[str, Any], message: str) -> None:
    (wrong,) = refusal(admin.get(path, **query), 422)

    assert (wrong["loc"], wrong["msg"]) == (["query", *query], message)


def test_a_user_is_sent_in_full_as_the_form_does(admin: Client) -> None:
    person = user_of(admin, name="Ada", budget=3.5)
    organization = admin.make("/admin/organizations", name=unique("form"))["id"]
    shown = admin.read(f"/admin/users/{person.user}")
    form = {**shown, "organization": organization, "budget": 7, "expires": float(int(time.time()) + 3600)}
    admin.change(f"/admin/users/{person.user}", **form)

    changed = admin.read(f"/admin/users/{person.user}")
    assert changed.pop("updated") >= shown.pop("updated")
    assert changed == {
        **shown,
        "organization": organization,
        "budget": 7.0,
        "expires": int(form["expires"]),
    }


def test_what_the_form_leaves_out_is_cleared_or_kept(admin: Client) -> None:
    organization = admin.make("/admin/organizations", name=unique("cleared"))["id"]
    person = user_of(
        admin, name="Ada", budget=3.5, organization=organization, priority=3, expires=int(time.time()) + 3600
    )
    admin.change(f"/admin/users/{person.user}", budget=0)

    changed = admin.read(f"/admin/users/{person.user}")
    assert (changed["budget"], changed["organization"], changed["expires"]) == (0.0, None, None)
    assert (changed["name"], changed["email"], changed["role"]) == ("Ada", person.email, person.role)
    assert changed["priority"] == 3


def test_the_pages_of_an_ordinary_user_have_no_administration(nobody: Client) -> None:
    for path in ("users", "roles", "organizations", "tokens", "providers"):
        assert refusal(nobody.get(f"/admin/{path}"), 403) == "Insufficient rights."
    assert refusal(nobody.get("/admin/routers"), 403) == "User has no admin rights."
    for path in ("/admin/routers/1", "/admin/providers/1"):
        assert refusal(nobody.delete(path), 403) == "User has no admin rights."
        assert refusal(nobody.patch(path, {}), 403) == "Insufficient rights."
    for path in ("/admin/routers", "/admin/providers"):
        assert refusal(nobody.post(path, {}), 403) == "User has no admin rights."
    assert nobody.read("/models") == {"object": "list", "data": []}
    assert nobody.read("/me/usage") == {"object": "list", "data": []}
