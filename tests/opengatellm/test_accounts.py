"""Organizations, roles, tokens and users: every status and text of the administrators' routes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.opengatellm.gate import PASSWORD, Client, limits, refusal, unique, user_of, wrong_fields
from tests.people import outlive, short_life

# -- organizations and roles


@pytest.mark.parametrize(("path", "what"), [("organizations", "Organization"), ("roles", "Role")])
def test_names_are_trimmed_unique_and_not_empty(admin: Client, path: str, what: str) -> None:
    name, other = unique(path), unique(path)
    made = admin.make(f"/admin/{path}", name=f"  {name} ")

    assert set(made) == {"id"}
    shown = admin.read(f"/admin/{path}/{made['id']}")
    assert (shown["object"], shown["name"], shown["users"]) == (path.removesuffix("s"), name, 0)
    assert refusal(admin.post(f"/admin/{path}", {"name": name}), 409) == f"{what} already exists."
    for blank in ("", "  "):
        assert wrong_fields(admin.post(f"/admin/{path}", {"name": blank})) == [
            (["body", "name"], "String should have at least 1 character")
        ]
    assert wrong_fields(admin.post(f"/admin/{path}", {})) == [(["body", "name"], "Field required")]
    second = admin.make(f"/admin/{path}", name=other)["id"]
    taken = refusal(admin.patch(f"/admin/{path}/{second}", {"name": name}), 409)
    texts = {
        "organizations": "Organization name already taken. Please, choose another one.",
        "roles": "Role already exists.",
    }
    assert taken == texts[path]
    admin.change(f"/admin/{path}/{second}", name=None)
    admin.change(f"/admin/{path}/{second}", name=f"{other} again")
    assert admin.read(f"/admin/{path}/{second}")["name"] == f"{other} again"
    admin.remove(f"/admin/{path}/{second}")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("organizations", "Organization not found."),
        ("roles", "Role not found."),
        ("users", "User not found."),
        ("tokens", "Token not found."),
    ],
)
def test_what_is_not_there_is_404(admin: Client, path: str, text: str) -> None:
    methods = ("GET", "DELETE") if path == "tokens" else ("GET", "PATCH", "DELETE")
    for method in methods:
        body: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
        assert refusal(admin.call(method, f"/admin/{path}/999999", **body), 404) == text
    (wrong,) = refusal(admin.get(f"/admin/{path}/first"), 422)
    assert wrong["loc"] == ["path", path.removesuffix("s")]
    assert wrong["type"] == "int_parsing"


def test_an_organization_has_exactly_these_keys(admin: Client) -> None:
    made = admin.make("/admin/organizations", name=unique("keys"))["id"]

    assert set(admin.read(f"/admin/organizations/{made}")) == {
        *("object", "id", "name", "users", "created", "updated")
    }


def test_a_role_keeps_permissions_and_limits_until_they_are_given(admin: Client) -> None:
    router = admin.make("/admin/routers", name=unique("model"), type="text-generation")["id"]
    given = limits(router, rpm=5, tpd=100)
    role = admin.make(
        "/admin/roles",
        name=unique("role"),
        default=True,
        permissions=["read_metric", "admin", "admin"],
        limits=given,
    )["id"]
    admin.change(f"/admin/roles/{role}", name=unique("renamed"), permissions=None)

    shown = admin.read(f"/admin/roles/{role}")
    assert set(shown) == {*("object", "id", "name", "permissions", "limits", "users", "created", "updated")}
    assert sorted(shown["permissions"]) == ["admin", "read_metric"]
    assert sorted(shown["limits"], key=str) == sorted(given, key=str)
    admin.change(f"/admin/roles/{role}", permissions=[], limits=[])
    shown = admin.read(f"/admin/roles/{role}")
    assert (shown["permissions"], shown["limits"]) == ([], [])


def test_wrong_limits_are_refused(admin: Client) -> None:
    router = admin.make("/admin/routers", name=unique("model"), type="text-generation")["id"]

    def made_with(*given: dict[str, Any]) -> Any:
        return admin.post("/admin/roles", {"name": unique("wrong"), "limits": list(given)})

    one = {"router": router, "type": "rpm", "value": 1}
    (wrong,) = refusal(made_with(one, {**one, "value": 2}), 422)
    assert wrong["msg"] == f"Value error, Duplicate limit found: ({router}, LimitType.RPM)."
    assert wrong["type"] == "value_error"
    assert refusal(made_with({**one, "router": 999_999}), 404) == "Model router not found."
    assert wrong_fields(made_with({**one, "value": -1})) == [
        (["body", "limits", 0, "value"], "Input should be greater than or equal to 0")
    ]
    assert wrong_fields(made_with({**one, "type": "rph"})) == [
        (["body", "limits", 0, "type"], "Input should be 'tpm', 'tpd', 'rpm' or 'rpd'")
    ]
    (place, _), *_ = wrong_fields(admin.post("/admin/roles", {"name": "x", "permissions": ["root"]}))
    assert place == ["body", "permissions", 0]


# -- tokens


def test_a_token_is_masked_after_it_was_made(admin: Client, nobody: Client) -> None:
    expires = int(time.time()) + 3600
    made = admin.make("/admin/tokens", name=" t ", user=nobody.user, expires=expires)
    shown = admin.read(f"/admin/tokens/{made['id']}")

    assert made["token"].startswith("sk-")
    assert shown.pop("created") <= time.time()
    assert shown == {
        "object": "token",
        "id": made["id"],
        "name": "t",
        "token": f"{made['token'][:8]}...{made['token'][-8:]}",
        "user": nobody.user,
        "expires": expires,
    }
    listed = admin.read("/admin/tokens", user=nobody.user, limit=100)["data"]
    assert {token["user"] for token in listed} == {nobody.user}
    assert made["id"] in {token["id"] for token in listed}
    admin.remove(f"/admin/tokens/{made['id']}")
    assert refusal(admin.delete(f"/admin/tokens/{made['id']}"), 404) == "Token not found."
    assert refusal(Client(admin.service, made["token"]).get("/me/info"), 403) == "Invalid API key."


def test_wrong_tokens_are_refused(admin: Client, nobody: Client) -> None:
    unknown = admin.post("/admin/tokens", {"name": "x", "user": 999_999})
    assert refusal(unknown, 404) == "User not found."
    past = admin.post("/admin/tokens", {"name": "x", "user": nobody.user, "expires": 1})
    assert wrong_fields(past) == [
        (["body", "expires"], "Value error, Wrong timestamp, must be in the future.")
    ]
    assert wrong_fields(admin.post("/admin/tokens", {"name": " ", "user": nobody.user})) == [
        (["body", "name"], "String should have at least 1 character")
    ]
    assert wrong_fields(admin.post("/admin/tokens", {})) == [
        (["body", "name"], "Field required"),
        (["body", "user"], "Field required"),
    ]


def test_an_expired_token_is_not_there(admin: Client) -> None:
    person = user_of(admin)
    expires = short_life()
    made = admin.make("/admin/tokens", name="short", user=person.user, expires=expires)
    assert Client(admin.service, made["token"]).get("/me/info").status_code == 200
    outlive(expires)

    assert refusal(Client(admin.service, made["token"]).get("/me/info"), 403) == "Invalid API key."
    assert refusal(admin.get(f"/admin/tokens/{made['id']}"), 404) == "Token not found."
    names = {token["name"] for token in admin.read("/admin/tokens", user=person.user)["data"]}
    assert names == {"token"}


# -- users


def test_a_user_has_the_defaults_of_the_api(admin: Client) -> None:
    person = user_of(admin)
    shown = admin.read(f"/admin/users/{person.user}")

    assert shown.pop("created") <= shown.pop("updated") <= time.time()
    assert shown == {
        "object": "user",
        "id": person.user,
        "email": person.email,
        "name": None,
        "sub": None,
        "iss": None,
        "role": person.role,
        "organization": None,
        "budget": None,
        "expires": None,
        "priority": 0,
    }


def test_users_are_listed_by_role_and_organization(admin: Client) -> None:
    organization = admin.make("/admin/organizations", name=unique("listed"))["id"]
    one, other = user_of(admin, organization=organization), user_of(admin)

    def ids(**query: Any) -> list[int]:
        return [user["id"] for user in admin.read("/admin/users", **query)["data"]]

    assert ids(role=one.role) == [one.user]
    assert ids(organization=organization) == [one.user]
    assert ids(organization=organization, role=other.role) == []
    assert ids(email=other.email) == [other.user]


def test_wrong_users_are_refused(admin: Client) -> None:
    person = user_of(admin)
    email = f"{unique('wrong')}@example.org"
    body = {"email": email, "password": PASSWORD, "role": person.role}

    def made_with(**fields: Any) -> Any:
        return admin.post("/admin/users", {**body, **fields})

    assert refusal(made_with(email=person.email), 409) == "User already exists."
    assert refusal(made_with(email="master"), 403) == "Reserved email."
    assert refusal(made_with(role=999_999), 404) == "Role not found."
    assert refusal(made_with(organization=999_999), 404) == "Organization not found."
    assert wrong_fields(made_with(expires=int(time.time()) - 10)) == [
        (["body", "expires"], "Value error, Wrong timestamp, must be in the future.")
    ]
    assert wrong_fields(made_with(priority=-1)) == [
        (["body", "priority"], "Input should be greater than or equal to 0")
    ]
    assert [place for place, _ in wrong_fields(admin.post("/admin/users", {}))] == [
        ["body", "email"],
        ["body", "password"],
        ["body", "role"],
    ]


def test_wrong_changes_of_a_user_are_refused(admin: Client) -> None:
    person, other = user_of(admin), user_of(admin)
    path = f"/admin/users/{person.user}"

    assert refusal(admin.patch(path, {"email": other.email}), 409) == "User already exists."
    assert refusal(admin.patch(path, {"email": "master"}), 403) == "Reserved email."
    assert refusal(admin.patch(path, {"role": 999_999}), 404) == "Role not found."
    assert refusal(admin.patch(path, {"organization": 999_999}), 404) == "Organization not found."
    wrong = {"current_password": "wrong", "password": "new"}
    assert refusal(admin.patch(path, wrong), 401) == "Invalid current password."
    admin.change(path, password="reset")
    assert person.post("/auth/login", {"email": person.email, "password": "reset"}).status_code == 200


def test_a_user_that_has_expired_reads_about_itself_and_nothing_else(admin: Client) -> None:
    person = user_of(admin)
    expires = short_life()
    admin.change(f"/admin/users/{person.user}", expires=expires)
    outlive(expires)

    assert person.read("/me/info")["id"] == person.user
    for path in ("/models", "/me/keys", "/me/usage"):
        assert refusal(person.get(path), 403) == "Invalid API key."
    login = person.post("/auth/login", {"email": person.email, "password": PASSWORD})
    assert login.status_code == 200
    assert refusal(Client(person.service, login.json()["key"]).get("/models"), 403) == "Invalid API key."
    admin.change(f"/admin/users/{person.user}", expires=None)
    assert person.get("/models").status_code == 200


def test_numbers_are_taken_as_the_playground_writes_them(admin: Client) -> None:
    expires = int(time.time()) + 3600
    role = admin.make("/admin/roles", name=unique("lax"))["id"]
    person = user_of(admin, budget="2.5", expires=float(expires), priority="4", role=str(role))

    shown = admin.read(f"/admin/users/{person.user}")
    assert (shown["budget"], shown["expires"], shown["priority"]) == (2.5, expires, 4)
