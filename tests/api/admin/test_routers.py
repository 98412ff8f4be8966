"""/v1/admin/routers: fields, paging, names in one space, and what deletion takes along."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.people import make_role
from tests.service import Service

MOUNTS = ("/v1", "/opengatellm/v1")
_numbers = itertools.count(1)


def fresh(word: str = "router") -> str:
    return f"{word}-{next(_numbers)}"


def make(service: Service, mount: str = "/v1", **fields: Any) -> dict[str, Any]:
    with service.http as http:
        body = {"name": fresh(), "type": "text-generation", **fields}
        answer = http.post(f"{mount}/admin/routers", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def get(service: Service, router: int, mount: str = "/v1") -> httpx.Response:
    with service.http as http:
        return http.get(f"{mount}/admin/routers/{router}")


def patch(service: Service, router: int, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.patch(f"/v1/admin/routers/{router}", json=fields)


def post(service: Service, body: Any, mount: str = "/v1") -> httpx.Response:
    with service.http as http:
        return http.post(f"{mount}/admin/routers", json=body)


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_router_has_the_defaults_of_the_reference(bare_service: Service, mount: str) -> None:
    name = fresh()
    made = make(bare_service, mount, name=f"  {name} ")

    assert made == {
        "id": made["id"],
        "name": name,
        "type": "text-generation",
        "aliases": [],
        "load_balancing_strategy": "shuffle",
        "cost_prompt_tokens": 0.0,
        "cost_completion_tokens": 0.0,
    }
    shown = get(bare_service, made["id"], mount).json()
    assert isinstance(shown["created"], int)
    assert shown == {
        **made,
        "object": "router",
        # The bootstrap key is the box itself: user 0 for OpenGateLLM's clients, the first administrator here.
        "user_id": 0 if mount == "/opengatellm/v1" else 1,
        "vector_size": None,
        "max_context_length": None,
        "providers": 0,
        "created": shown["created"],
        "updated": shown["created"],
    }


def test_the_list_is_paged_and_knows_its_total_beyond_its_end(bare_service: Service) -> None:
    names = [fresh("page") for _ in range(3)]
    ids = [make(bare_service, name=name)["id"] for name in names]
    with bare_service.http as http:

        def page(**query: Any) -> dict[str, Any]:
            answer = http.get("/v1/admin/routers", params=query)
            assert answer.status_code == 200, answer.text
            body: dict[str, Any] = answer.json()
            return body

        everything = page(limit=100)
        total = everything["total"]
        assert everything["object"] == "list"
        assert total == len(everything["data"]) >= 3
        assert [each["id"] for each in everything["data"]] == sorted(
            each["id"] for each in everything["data"]
        )
        last = page(limit=3, sort_by="id", sort_order="desc")
        assert [each["id"] for each in last["data"]] == ids[::-1]
        assert (last["offset"], last["limit"], last["total"]) == (0, 3, total)
        beyond = page(offset=total + 5)
        assert beyond == {"object": "list", "total": total, "offset": total + 5, "limit": 10, "data": []}
        by_name = [each["name"] for each in page(limit=100, order_by="name")["data"]]
        assert by_name == sorted(by_name)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "offset=-1", "sort_by=type", "sort_order=up"])
def test_a_page_out_of_bounds_is_422(bare_service: Service, query: str) -> None:
    with bare_service.http as http:
        assert http.get(f"/v1/admin/routers?{query}").status_code == 422


def test_names_and_aliases_share_one_space(bare_service: Service) -> None:
    name, alias = fresh(), fresh("alias")
    made = make(bare_service, name=name, aliases=[alias, alias])
    assert made["aliases"] == [alias]
    kind = {"type": "text-generation"}

    for taken in (name, alias):
        answer = post(bare_service, {"name": taken, **kind})
        assert answer.status_code == 409
        assert answer.json()["message"] == f"Router {taken} already exists."
    answer = post(bare_service, {"name": fresh(), "aliases": [alias, fresh(), name], **kind})
    assert answer.status_code == 409
    assert answer.json()["message"] == f"Following aliases already exist: '['{alias}', '{name}']'"
    own = fresh()
    assert post(bare_service, {"name": own, "aliases": [own], **kind}).status_code == 409

    other = make(bare_service)["id"]
    for change in ({"name": name}, {"name": alias}, {"aliases": [name]}, {"aliases": [alias]}):
        answer = patch(bare_service, other, **change)
        assert answer.status_code == 409, change
        assert answer.json()["message"] == "Name conflict with existing router or alias."


def test_a_change_keeps_what_it_does_not_name(bare_service: Service) -> None:
    router = make(bare_service, aliases=[fresh("alias")], cost_prompt_tokens=1.5)["id"]
    before = get(bare_service, router).json()

    assert patch(bare_service, router, name=None, aliases=None, type=None).status_code == 204
    assert get(bare_service, router).json() == before
    answer = patch(
        bare_service, router, cost_completion_tokens="2", load_balancing_strategy="least_busy", extra=1
    )
    assert (answer.status_code, answer.content) == (204, b"")
    assert get(bare_service, router).json() == {
        **before,
        "cost_completion_tokens": 2.0,
        "load_balancing_strategy": "least_busy",
        "updated": get(bare_service, router).json()["updated"],
    }


def test_a_rename_may_keep_the_old_name_as_an_alias(bare_service: Service) -> None:
    old, new, gone = fresh(), fresh(), fresh("alias")
    router = make(bare_service, name=old, aliases=[gone])["id"]

    assert patch(bare_service, router, name=new, aliases=[old]).status_code == 204
    shown = get(bare_service, router).json()
    assert (shown["name"], shown["aliases"]) == (new, [old])
    assert make(bare_service, name=gone)["name"] == gone
    assert patch(bare_service, router, aliases=[]).status_code == 204
    assert get(bare_service, router).json()["aliases"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": " "},
        {"name": None},
        {"name": "a\0b"},
        {"name": "x" * 5000},
        {"type": "chat"},
        {"aliases": [""]},
        {"aliases": ["x" * 65]},
        {"aliases": ["a\nb"]},
        {"load_balancing_strategy": "random"},
        {"cost_prompt_tokens": -0.1},
        {"cost_prompt_tokens": "nan"},
        {"cost_completion_tokens": "inf"},
        {"cost_completion_tokens": 1e300},
    ],
)
def test_wrong_fields_are_422(bare_service: Service, fields: dict[str, Any]) -> None:
    answer = post(bare_service, {"name": fresh(), "type": "text-generation", **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][:2] == ["body", next(iter(fields))]


def test_an_unknown_router_is_404_in_the_words_of_the_reference(bare_service: Service) -> None:
    with bare_service.http as http:
        for number in (0, 999_999, 1 << 70):
            for answer in (
                http.get(f"/v1/admin/routers/{number}"),
                http.delete(f"/v1/admin/routers/{number}"),
            ):
                assert answer.status_code == 404
                assert answer.json()["detail"] == f"Model router {number} not found."
            answer = http.patch(f"/v1/admin/routers/{number}", json={})
            assert (answer.status_code, answer.json()["detail"]) == (404, "Model router not found.")
        assert http.get("/v1/admin/routers/x").status_code == 422


def test_a_deleted_router_is_returned_and_frees_its_names_and_limits(bare_service: Service) -> None:
    name, alias = fresh(), fresh("alias")
    router = make(bare_service, name=name, aliases=[alias])["id"]
    shown = get(bare_service, router).json()
    role = make_role(
        bare_service, limits=[{"router": router, "type": kind, "value": None} for kind in ("rpm", "tpm")]
    )
    with bare_service.http as http:
        answer = http.delete(f"/v1/admin/routers/{router}")
        assert (answer.status_code, answer.json()) == (200, shown)
        assert http.get(f"/v1/admin/routers/{router}").status_code == 404
        assert http.get(f"/v1/admin/roles/{role}").json()["limits"] == []
    assert make(bare_service, name=alias, aliases=[name])["id"] > router


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["nan", "text-generation", "shuffle", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "name",
    "type",
    "aliases",
    "load_balancing_strategy",
    "cost_prompt_tokens",
    "cost_completion_tokens",
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON), keep=st.booleans())
def test_any_json_is_taken_or_refused(bare_service: Service, body: Any, keep: bool) -> None:
    if keep and isinstance(body, dict):
        body = {"name": fresh(), "type": "text-generation", **body}
    with bare_service.http as http:
        answer = http.post("/v1/admin/routers", json=body)
        assert answer.status_code in {201, 400, 409, 422}, answer.text
        if answer.status_code == 201:
            router = answer.json()["id"]
            assert http.patch(f"/v1/admin/routers/{router}", json=body).status_code == 204
            assert http.delete(f"/v1/admin/routers/{router}").status_code == 200
        else:
            assert http.patch("/v1/admin/routers/1", json=body).status_code in {204, 400, 404, 409, 422}
