"""/v1/admin/roles, as the published contract has it; default limits in the union only."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.hostile import bodies, no_requests, refuses, send, well
from tests.people import LIMIT_TYPES, limits, make_person, make_role, post_id
from tests.service import Service

PATH = "/v1/admin/roles"
STRICT = "/opengatellm/v1/admin/roles"
UNLIMITED = [{"type": kind, "value": None} for kind in LIMIT_TYPES]
_numbers = itertools.count(1)


def unique(noun: str = "role") -> str:
    return f"{noun}-{time.time_ns()}-{next(_numbers)}"


def make_router(service: Service) -> int:
    return post_id(service, "/v1/admin/routers", {"name": unique("router"), "type": "text-generation"})


def detail(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 422, response.text
    (error,) = response.json()["detail"]
    assert isinstance(error, dict)
    return error


def test_one_is_made_shown_changed_and_removed(bare_service: Service) -> None:
    with bare_service.http as http:
        name, router = unique(), make_router(bare_service)
        before = int(time.time())
        answer = http.post(
            PATH,
            json={
                "name": f"  {name} ",
                "permissions": ["read_metric", "admin", "read_metric"],
                "limits": limits(router, rpm=10, tpm=0),
                "default": True,
            },
        )
        assert answer.status_code == 201
        assert set(answer.json()) == {"id"}
        made = answer.json()["id"]

        shown = http.get(f"{PATH}/{made}").json()
        assert before <= shown.pop("created") <= shown.pop("updated") <= time.time()
        assert shown == {
            "object": "role",
            "id": made,
            "name": name,
            "permissions": ["admin", "read_metric"],
            "limits": limits(router, rpm=10, tpm=0),
            "default_limits": [],
            "users": 0,
        }
        assert http.patch(f"{PATH}/{made}", json={"limits": limits(router)[:1]}).status_code == 204
        assert http.patch(f"{PATH}/{made}", json={"name": name, "permissions": None}).status_code == 204
        shown = http.get(f"{PATH}/{made}").json()
        assert shown["permissions"] == ["admin", "read_metric"]
        assert shown["limits"] == limits(router)[:1]
        assert http.patch(f"{PATH}/{made}", json={"permissions": [], "limits": []}).status_code == 204
        shown = http.get(f"{PATH}/{made}").json()
        assert (shown["permissions"], shown["limits"]) == ([], [])
        removed = http.delete(f"{PATH}/{made}")
        assert (removed.status_code, removed.content) == (204, b"")
        for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("PATCH", {}), ("DELETE", None)):
            gone = http.request(method, f"{PATH}/{made}", json=body)
            assert gone.status_code == 404
            assert gone.json()["detail"] == "Role not found."


def test_a_name_alone_makes_a_role_that_may_nothing(bare_service: Service) -> None:
    with bare_service.http as http:
        for body in ({}, {"permissions": None}):
            made = post_id(bare_service, PATH, {"name": unique(), **body})
            shown = http.get(f"{PATH}/{made}").json()
            assert (shown["permissions"], shown["limits"], shown["default_limits"]) == ([], [], [])


def test_a_taken_name_is_refused(bare_service: Service) -> None:
    with bare_service.http as http:
        first, second = unique(), unique()
        made = post_id(bare_service, PATH, {"name": first})
        other = post_id(bare_service, PATH, {"name": second})

        for refused in (
            http.post(PATH, json={"name": f" {first}"}),
            http.patch(f"{PATH}/{other}", json={"name": first}),
        ):
            assert refused.status_code == 409
            assert refused.json()["detail"] == "Role already exists."
        assert http.get(f"{PATH}/{other}").json()["name"] == second
        assert http.patch(f"{PATH}/{made}", json={"name": first}).status_code == 204


def test_a_role_with_users_stays_and_says_how_many(bare_service: Service) -> None:
    with bare_service.http as http:
        role, other = make_role(bare_service), make_role(bare_service)
        person = make_person(bare_service, role)

        assert http.get(f"{PATH}/{role}").json()["users"] == 1
        refused = http.delete(f"{PATH}/{role}")
        assert refused.status_code == 409
        assert refused.json()["detail"] == "Delete role with users is not allowed."
        assert http.patch(f"/v1/admin/users/{person.id}", json={"role": other}).status_code == 204
        assert http.delete(f"{PATH}/{role}").status_code == 204


def test_limits_twice_for_the_same_are_refused(bare_service: Service) -> None:
    with bare_service.http as http:
        role = make_role(bare_service)
        for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{role}"), ("POST", STRICT)):
            twice = [
                {"router": 1, "type": "rpm", "value": 5},
                {"router": 1, "type": "rpd", "value": 5},
                {"router_id": "1", "type": "rpm", "value": None},
            ]
            error = detail(http.request(method, path, json={"name": unique(), "limits": twice}))
            assert error["msg"] == "Value error, Duplicate limit found: (1, LimitType.RPM)."
            assert (error["loc"], error["type"]) == (["body", "limits"], "value_error")


@pytest.mark.parametrize("router", [99_999, 0, -1, 1 << 63, 10**30])
def test_limits_of_an_unknown_router_are_refused_and_nothing_is_made(
    bare_service: Service, router: int
) -> None:
    with bare_service.http as http:
        name = unique()
        body = {"name": name, "limits": [{"router": router, "type": "rpm", "value": 5}]}
        for _ in range(2):  # twice: the first left no role of that name
            refused = http.post(PATH, json=body)
            assert refused.status_code == 404
            assert refused.json()["detail"] == "Model router not found."
        role = make_role(bare_service)
        refused = http.patch(f"{PATH}/{role}", json=body)
        assert refused.status_code == 404
        assert http.get(f"{PATH}/{role}").json()["name"] != name


def test_numbers_may_be_whole_floats_or_texts_and_later_names_are_known(bare_service: Service) -> None:
    with bare_service.http as http:
        router = make_router(bare_service)
        given = [
            {"router": str(router), "type": "tpm", "value": "7"},
            {"router_id": float(router), "type": "rpm", "value": 3.0},
            {"router": router, "type": "rpd", "value": (1 << 63) - 1, "unknown": 1},
        ]
        role = post_id(bare_service, PATH, {"name": unique(), "limits": given})

        assert http.get(f"{PATH}/{role}").json()["limits"] == [
            {"router": router, "type": "tpm", "value": 7},
            {"router": router, "type": "rpm", "value": 3},
            {"router": router, "type": "rpd", "value": (1 << 63) - 1},
        ]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"limits": [{"type": "rpm", "value": 1}]}, ["limits", 0, "router"]),
        ({"limits": [{"router": 1, "value": 1}]}, ["limits", 0, "type"]),
        ({"limits": [{"router": 1, "type": "tph", "value": 1}]}, ["limits", 0, "type"]),
        ({"limits": [{"router": 1, "type": "rpm", "value": -1}]}, ["limits", 0, "value"]),
        ({"limits": [{"router": 1, "type": "rpm", "value": 1.5}]}, ["limits", 0, "value"]),
        ({"limits": [{"router": 1, "type": "rpm", "value": 1 << 63}]}, ["limits", 0, "value"]),
        ({"limits": "all"}, ["limits"]),
        ({"limits": None}, ["limits"]),
        ({"permissions": ["root"]}, ["permissions", 0]),
        ({"permissions": "admin"}, ["permissions"]),
        ({"default_limits": [{"type": "rpm", "value": -1}]}, ["default_limits", 0, "value"]),
        ({"name": " "}, ["name"]),
    ],
)
def test_a_wrong_field_is_named(bare_service: Service, body: dict[str, Any], place: list[Any]) -> None:
    with bare_service.http as http:
        error = detail(http.post(PATH, json={"name": unique(), **body}))

    assert error["loc"] == ["body", *place]


def test_default_limits_are_the_unions_own(bare_service: Service) -> None:
    with bare_service.http as http:
        role = post_id(bare_service, PATH, {"name": unique(), "default_limits": UNLIMITED})
        assert http.get(f"{PATH}/{role}").json()["default_limits"] == UNLIMITED
        listed = http.get(PATH, params={"order_direction": "desc", "limit": 1}).json()["data"]
        assert listed[0]["default_limits"] == UNLIMITED

        strict = http.get(f"{STRICT}/{role}").json()
        assert set(strict) == {
            *("object", "id", "name", "permissions", "limits", "users", "created", "updated")
        }
        listed = http.get(STRICT, params={"order_direction": "desc", "limit": 1}).json()["data"]
        assert listed == [strict]
        # There it is a field like any that nobody knows.
        for ignored in ([], "all", [{"type": "x"}]):
            body = {"name": unique(), "default_limits": ignored}
            assert http.patch(f"{STRICT}/{role}", json=body).status_code == 204
        assert http.get(f"{PATH}/{role}").json()["default_limits"] == UNLIMITED
        made = post_id(bare_service, STRICT, {"name": unique(), "default_limits": UNLIMITED})
        assert http.get(f"{PATH}/{made}").json()["default_limits"] == []

        twice = detail(http.patch(f"{PATH}/{role}", json={"default_limits": [UNLIMITED[0]] * 2}))
        assert twice["msg"] == "Value error, Duplicate limit found: LimitType.TPM."
        assert http.patch(f"{PATH}/{role}", json={"default_limits": []}).status_code == 204
        assert http.get(f"{PATH}/{role}").json()["default_limits"] == []


def test_lists_are_ordered_and_cut(bare_service: Service) -> None:
    with bare_service.http as http:
        stem = unique()
        made = [make_role(bare_service, name=f"{stem}-{letter}") for letter in "bca"]

        def page(**query: Any) -> list[int]:
            answer = http.get(PATH, params=query)
            assert answer.status_code == 200, answer.text
            assert set(answer.json()) == {"object", "data"}
            return [each["id"] for each in answer.json()["data"]]

        assert page(limit=3, order_direction="desc") == made[::-1]
        assert http.patch(f"{PATH}/{made[0]}", json={"name": f"{stem}-d"}).status_code == 204
        for order_by in ("created", "updated"):
            assert set(page(order_by=order_by, order_direction="desc", limit=3)) == set(made)
        assert page(offset=10**9) == page(offset=(1 << 63) - 1) == []
        assert http.get(PATH, params={"order_by": "users"}).status_code == 422


def test_the_only_administrators_permission_stays(own_box: Service) -> None:
    with own_box.http as http:
        me = http.get("/v1/admin/users", params={"email": "administrator@localhost"}).json()["data"][0]
        refusals: list[dict[str, Any]] = [
            {"permissions": []},
            {"name": unique(), "permissions": ["read_metric"]},
        ]
        for body in refusals:
            refused = http.patch(f"{PATH}/{me['role']}", json=body)
            assert refused.status_code == 409
            assert "must keep an administrator" in refused.text
        shown = http.get(f"{PATH}/{me['role']}").json()
        assert (shown["name"], "admin" in shown["permissions"]) == ("administrator", True)


def test_a_permission_counts_from_the_next_request_on(bare_service: Service) -> None:
    with bare_service.http as http:
        person = make_person(bare_service)
        with person.http as other:
            assert other.get(PATH).status_code == 403
            assert http.patch(f"{PATH}/{person.role}", json={"permissions": ["admin"]}).status_code == 204
            assert other.get(PATH).status_code == 200
            assert http.patch(f"{PATH}/{person.role}", json={"permissions": []}).status_code == 204
            assert other.get(PATH).status_code == 403


@pytest.mark.parametrize("body", no_requests("name"))
def test_what_is_no_request_is_refused(bare_service: Service, body: bytes) -> None:
    with bare_service.http as http:
        role = make_role(bare_service)
        assert refuses(http, PATH, role, body)


@pytest.fixture(scope="module")
def target(bare_service: Service) -> int:
    return make_role(bare_service)


LIMIT = st.fixed_dictionaries(
    {},
    optional={
        "router": st.integers(0, 3),
        "type": st.sampled_from(LIMIT_TYPES),
        "value": st.none() | st.integers(),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=bodies(
        name=st.text(max_size=12),
        permissions=st.none() | st.lists(st.sampled_from(["admin", "read_metric", "root"])),
        limits=st.none() | st.lists(LIMIT, max_size=4),
        default_limits=st.none() | st.lists(LIMIT, max_size=4),
    ),
    method=st.sampled_from(["POST", "PATCH"]),
    path=st.sampled_from([PATH, STRICT]),
)
def test_any_json_is_taken_or_refused(
    http: httpx.Client, target: int, body: Any, method: str, path: str
) -> None:
    answer = send(http, method, path if method == "POST" else f"{path}/{target}", body)
    assert well(answer), answer.text
    assert http.get(f"{PATH}/{target}").status_code == 200


def test_limits_decide_who_sees_a_model_at_once(service: Service) -> None:
    with service.http as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
        routers = http.get("/v1/admin/routers", params={"limit": 100}).json()["data"]
        router = next(each["id"] for each in routers if each["name"] == model)
        role = make_role(service, limits=[])
        person = make_person(service, role)

        def seen() -> list[str]:
            with person.http as other:
                return [each["id"] for each in other.get("/v1/models").json()["data"]]

        assert seen() == []
        assert http.patch(f"{PATH}/{role}", json={"limits": limits(router)}).status_code == 204
        assert seen() == [model]
        nothing = limits(router, rpm=0, rpd=0, tpm=0, tpd=0)
        body = {"limits": nothing, "default_limits": UNLIMITED}
        assert http.patch(f"{PATH}/{role}", json=body).status_code == 204
        assert model not in seen()
        assert len(seen()) == len(routers) - 1
