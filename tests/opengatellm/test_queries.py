"""Lists and paths: which numbers they take, by which names an order goes, and that all that is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.opengatellm.gate import Client, refusal, unique, user_of, wrong_fields

NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
LISTS = [
    "/admin/organizations",
    "/admin/roles",
    "/admin/users",
    "/admin/tokens",
    "/admin/providers",
    "/me/keys",
]
# What is no number, however long it is.
WORDS = ["first", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "x" * 3000, "1" * 3000]


@pytest.mark.parametrize("word", WORDS, ids=["short", "uuid", "long", "digits"])
@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/admin/organizations", "organization"),
        ("/admin/roles", "role"),
        ("/admin/users", "user"),
        ("/admin/tokens", "token"),
        ("/admin/routers", "router_id"),
        ("/admin/providers", "provider"),
        ("/me/keys", "key"),
    ],
)
def test_a_path_that_is_no_number_is_422(master: Client, path: str, parameter: str, word: str) -> None:
    assert wrong_fields(master.get(f"{path}/{word}")) == [(["path", parameter], NO_INTEGER)]


def test_zeros_before_a_number_do_not_matter(master: Client, nobody: Client) -> None:
    assert master.read(f"/admin/users/{nobody.user:030}")["id"] == nobody.user


@pytest.mark.parametrize("asked", ["0", "-1", "999999", "9" * 30])
def test_a_404_names_the_number_that_was_asked_for(admin: Client, asked: str) -> None:
    for method in ("GET", "DELETE"):
        answer = admin.call(method, f"/admin/routers/{asked}")
        assert refusal(answer, 404) == f"Model router {asked} not found."
    answer = admin.delete(f"/admin/providers/{asked}")
    assert refusal(answer, 404) == f"Model provider {asked} not found."
    body = {"router": -1, "type": "vllm", "url": "http://127.0.0.1:9/", "model_name": "x"}
    assert refusal(admin.post("/admin/providers", body), 404) == "Model router -1 not found."


@pytest.mark.parametrize(
    ("path", "parameter", "body", "field"),
    [
        ("/admin/organizations", "organization", {"name": 5}, "name"),
        ("/admin/roles", "role", {"permissions": 5}, "permissions"),
        ("/admin/users", "user", {"role": "first"}, "role"),
        ("/admin/routers", "router", {"type": 5}, "type"),
        ("/admin/providers", "provider", {"timeout": "long"}, "timeout"),
    ],
)
def test_what_is_wrong_with_a_path_and_with_a_body_is_named_together(
    admin: Client, path: str, parameter: str, body: dict[str, Any], field: str
) -> None:
    answer = admin.patch(f"{path}/first", body)
    assert [place for place, _ in wrong_fields(answer)] == [["path", parameter], ["body", field]]
    headers = {"Content-Type": "application/json"}
    for content, places in ((b"", [["path", parameter], ["body"]]), (b"{", [["body", 1]])):
        answer = admin.call("PATCH", f"{path}/first", content=content, headers=headers)
        assert [place for place, _ in wrong_fields(answer)] == places


def test_what_is_wrong_with_filters_pages_and_paths_is_named_together(admin: Client) -> None:
    for method, path, names in (
        ("GET", "/admin/users", ["role", "organization", "limit"]),
        ("GET", "/admin/tokens", ["user", "limit"]),
        ("GET", "/admin/providers", ["router", "limit"]),
        ("DELETE", "/admin/tokens/first", ["token", "user"]),
    ):
        answer = admin.call(method, path, params=dict.fromkeys(names, "many"))
        assert [place[-1] for place, _ in wrong_fields(answer)] == names


@pytest.mark.parametrize("path", LISTS)
def test_all_that_is_wrong_with_a_page_is_named(admin: Client, path: str) -> None:
    answer = admin.get(path, offset=-1, limit="many" * 10, order_by="secret", order_direction="up")

    (offset, limit, order, direction) = wrong_fields(answer)
    assert offset == (["query", "offset"], "Input should be greater than or equal to 0")
    assert limit == (["query", "limit"], NO_INTEGER)
    assert order[0] == ["query", "order_by"]
    assert direction == (["query", "order_direction"], "Input should be 'asc' or 'desc'")
    assert [wrong["type"] for wrong in refusal(answer, 422)[2:]] == ["literal_error", "literal_error"]
    answer = admin.get("/admin/routers", sort_by="secret", sort_order="up")
    assert [wrong["type"] for wrong in refusal(answer, 422)] == ["enum", "enum"]


def test_all_that_is_wrong_with_a_search_for_usage_is_named(admin: Client) -> None:
    answer = admin.get("/me/usage", limit=0, start_time="then", end_time="now", endpoint="/v1/models")

    assert [place for place, _ in wrong_fields(answer)] == [
        ["query", name] for name in ("limit", "start_time", "end_time", "endpoint")
    ]
    assert refusal(answer, 422)[-1]["ctx"]["expected"].endswith("'/v1/rerank' or '/v1/search'")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/admin/users", ["role", "organization"]),
        ("/admin/tokens", ["user"]),
        ("/admin/providers", ["router", "router_id"]),
    ],
)
def test_what_no_row_has_finds_nothing(admin: Client, path: str, names: list[str]) -> None:
    for name in names:
        assert admin.read(path, **{name: -1}) == {"object": "list", "data": []}


def test_of_a_repeated_filter_the_last_counts(admin: Client) -> None:
    person = user_of(admin)
    email = admin.read(f"/admin/users/{person.user}")["email"]
    for emails, status in ((["nobody", email], 200), ([email, "nobody"], 404)):
        assert admin.get("/admin/users", email=emails).status_code == status


def test_an_order_goes_by_the_names_of_its_list(master: Client) -> None:
    late, early = f"zz {unique('order')}", f"aa {unique('order')}"
    for name in (late, early):
        master.make("/admin/routers", name=name, type="text-generation")
        master.make("/admin/organizations", name=name)

    def names(path: str, **query: Any) -> list[str]:
        found = [each["name"] for each in master.read(path, limit=100, **query)["data"]]
        return [name for name in found if name in (late, early)]

    for path, own, other in (
        ("/admin/routers", ("sort_by", "sort_order"), ("order_by", "order_direction")),
        ("/admin/organizations", ("order_by", "order_direction"), ("sort_by", "sort_order")),
    ):
        assert names(path, **{own[0]: "name", other[0]: "id"}) == [early, late]
        assert names(path, **{own[0]: "name", own[1]: "desc", other[1]: "asc"}) == [late, early]
        # The others are parameters that the route need not know.
        assert names(path, **{other[0]: "name"}) == [early, late]
        assert names(path, **{other[0]: "secret", other[1]: "up"}) == [late, early]
        assert master.get(path, **{own[0]: "secret"}).status_code == 422


# -- what came with a wrong body


@pytest.mark.parametrize("body", [b"", b"null"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/admin/organizations"),
        ("POST", "/admin/providers"),
        ("PATCH", "/admin/users/999999"),
        ("POST", "/auth/login"),
        ("PATCH", "/me/info"),
        ("POST", "/me/keys"),
    ],
)
def test_a_request_without_a_body_lacks_it(admin: Client, method: str, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    (wrong,) = refusal(admin.call(method, path, content=body, headers=headers), 422)

    assert wrong == {"loc": ["body"], "msg": "Field required", "type": "missing", "input": None}


def test_what_came_is_repeated_as_it_came(admin: Client) -> None:
    router = admin.make("/admin/routers", name=unique("model"), type="text-generation")["id"]
    person = user_of(admin)
    twice = [{"router": router, "type": "rpm", "value": 1}, {"router": router, "type": "rpm", "value": 2}]
    nameless = {"type": "rpm", "value": 1}
    for path, body, came in (
        ("/admin/organizations", {"name": " \t "}, " \t "),
        ("/admin/tokens", {"name": "  ", "user": person.user}, "  "),
        ("/admin/roles", {"name": "x", "limits": twice}, twice),
        ("/admin/roles", {"name": "x", "limits": [nameless]}, nameless),
        ("/admin/routers", {"name": "a\nb", "type": "text-generation"}, "a\nb"),
    ):
        (wrong,) = refusal(admin.post(path, body), 422)
        assert wrong["input"] == came
    (wrong,) = refusal(person.post("/me/keys", {"name": "x" * 129}), 422)
    assert (wrong["type"], wrong["ctx"]) == ("string_too_long", {"max_length": 128})


def test_truth_is_no_number(admin: Client) -> None:
    body = {"email": unique("true"), "password": "p", "role": True, "budget": True}

    assert [(wrong["type"], wrong["input"]) for wrong in refusal(admin.post("/admin/users", body), 422)] == [
        ("int_type", True),
        ("float_type", True),
    ]


def test_wrong_parts_of_a_limit_come_in_their_order(admin: Client) -> None:
    answer = admin.post("/admin/roles", {"name": "x", "limits": [{"router": "r", "type": "t", "value": "v"}]})

    assert [place[-1] for place, _ in wrong_fields(answer)] == ["router", "type", "value"]
