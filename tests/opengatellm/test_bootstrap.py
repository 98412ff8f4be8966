"""What scripts do to set a gateway up: they try to make things, and find those that are there."""

from __future__ import annotations

import pytest

from tests.opengatellm.gate import PASSWORD, Client, body_of, refusal, unique


def test_a_script_that_runs_twice_finds_what_it_made(admin: Client) -> None:
    role = admin.make("/admin/roles", name=unique("bootstrap"), permissions=["admin"], limits=[])["id"]
    email = f"{unique('bootstrap')}@example.org"
    body = {"email": email, "name": "first", "password": PASSWORD, "role": role}
    made = admin.make("/admin/users", **body)

    assert set(made) == {"id"}
    assert refusal(admin.post("/admin/users", body), 409) == "User already exists."
    found = admin.read("/admin/users", email=email)
    assert found["object"] == "list"
    assert [user["id"] for user in found["data"]] == [made["id"]]
    # Without the filter by e-mail: page by page.
    users, offset = [], 0
    while page := admin.read("/admin/users", offset=offset, limit=2)["data"]:
        users += page
        offset += 2
    assert [user["id"] for user in users if user["email"] == email] == [made["id"]]
    assert len({user["id"] for user in users}) == len(users)


def test_a_user_that_is_not_there_is_not_found_by_its_email(admin: Client) -> None:
    answer = admin.get("/admin/users", email="nobody@example.org")

    assert refusal(answer, 404) == "User not found."


@pytest.mark.parametrize("field", ["token", "key"])
def test_the_key_that_a_script_reads_is_there_under_both_names(master: Client, field: str) -> None:
    role = master.make("/admin/roles", name=unique("script"))["id"]
    email = f"{unique('script')}@example.org"
    user = master.make("/admin/users", email=email, password=PASSWORD, role=role)["id"]
    session = body_of(master.post("/auth/login", {"email": email, "password": PASSWORD}))
    assert set(session) == {"id", "key"}

    made = Client(master.service, session["key"]).make("/me/keys", name="script")

    assert set(made) == {"id", "token", "key"}
    assert Client(master.service, made[field]).read("/me/info")["id"] == user
    assert set(master.make("/admin/tokens", name="script", user=user)) == {"id", "token"}


def test_the_master_logs_in_with_its_key(master: Client) -> None:
    answer = master.post("/auth/login", {"email": "master", "password": master.key})

    assert body_of(answer) == {"id": 0, "key": master.key}
    info = master.read("/me/info")
    assert (info["id"], info["email"], info["name"], info["organization"]) == (0, "master", "master", 0)
    assert (info["budget"], info["priority"], info["created"], info["updated"]) == (None, 0, 0, 0)
    assert set(info["permissions"]) == {"admin", "create_public_collection", "read_metric", "provide_models"}
    assert refusal(master.patch("/me/info", {"name": "x"}), 404) == "User not found."
    assert refusal(master.post("/me/keys", {"name": "x"}), 404) == "User not found."


def test_everything_a_team_needs_is_made_in_one_go(admin: Client) -> None:
    organization = admin.make("/admin/organizations", name=unique("team"))["id"]
    router = admin.make("/admin/routers", name=unique("model"), type="text-generation")["id"]
    limit = [{"router": router, "type": kind, "value": None} for kind in ("tpm", "tpd", "rpm", "rpd")]
    role = admin.make("/admin/roles", name=unique("team"), permissions=[], limits=limit)["id"]
    user = admin.make(
        "/admin/users",
        email=f"{unique('team')}@example.org",
        password=PASSWORD,
        role=role,
        organization=organization,
        budget=10.5,
    )["id"]
    token = admin.make("/admin/tokens", name="team", user=user)

    info = Client(admin.service, token["token"]).read("/me/info")
    assert (info["organization"], info["budget"], info["permissions"]) == (organization, 10.5, [])
    assert sorted(info["limits"], key=str) == sorted(limit, key=str)
    assert admin.read(f"/admin/organizations/{organization}")["users"] == 1
    assert admin.read(f"/admin/roles/{role}")["users"] == 1
    for path in (f"/admin/roles/{role}", f"/admin/organizations/{organization}"):
        what = path.split("/")[2].removesuffix("s")
        assert refusal(admin.delete(path), 409) == f"Delete {what} with users is not allowed."
    for path in (f"/admin/users/{user}", f"/admin/roles/{role}", f"/admin/organizations/{organization}"):
        admin.remove(path)
        assert admin.get(path).status_code == 404
    assert Client(admin.service, token["token"]).get("/me/info").status_code == 403
