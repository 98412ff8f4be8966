"""What holds for every route: keys, errors, bodies, and the order of checks."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.opengatellm.gate import HTTP, ROOT, Client, limits, refusal, unique, user_of, wrong_fields

KEYED = [
    ("GET", "/models"),
    ("GET", "/me/info"),
    ("GET", "/admin/users"),
    ("POST", "/admin/providers"),
    ("POST", "/chat/completions"),
    ("POST", "/search"),
]


def send(client: Client, method: str, path: str, **headers: str | bytes) -> httpx.Response:
    """Send a request with these headers alone."""
    sent = {name: value if isinstance(value, bytes) else value.encode() for name, value in headers.items()}
    return HTTP.request(
        method,
        f"{client.service.base_url}{ROOT}{path}",
        headers=[(name.encode(), value) for name, value in sent.items()],
    )


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_without_a_bearer_it_is_401(master: Client, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Basic bWFzdGVyOmtleQ=="}):
        answer = send(master, method, f"/v1{path}", **headers)
        assert refusal(answer, 401) == "Not authenticated"
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), KEYED)
@pytest.mark.parametrize("key", ["sk-unknown", "no key at all", "x" * 5000, "sk-é"], ids=ascii)
def test_a_bad_key_is_403(master: Client, method: str, path: str, key: str) -> None:
    answer = send(master, method, f"/v1{path}", Authorization=f"Bearer {key}")

    assert refusal(answer, 403) == "Invalid API key."


def test_the_scheme_is_spelled_bearer(master: Client) -> None:
    answer = send(master, "GET", "/v1/me/info", Authorization=f"bearer {master.key}")

    assert refusal(answer, 403) == "Invalid authentication scheme."


def test_unknown_paths_methods_and_slashes(master: Client) -> None:
    assert master.get("/nowhere").text == '{"detail":"Not Found"}'
    assert master.get("/nowhere").status_code == 404
    assert refusal(master.delete("/models"), 405) == "Method Not Allowed"
    answer = master.get("/models/", follow=1)
    assert answer.status_code == 307
    assert httpx.URL(answer.headers["Location"]).path == f"{ROOT}/v1/models"


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD"])
def test_a_method_that_a_path_lacks_is_405_whoever_asks(master: Client, method: str) -> None:
    for client in (master, Client(master.service, "sk-unknown")):
        answer = client.call(method, "/admin/roles/1")
        assert answer.status_code == 405, answer.text
        assert {"GET", "PATCH", "DELETE"} <= set(answer.headers["Allow"].split(", "))
        assert method == "HEAD" or answer.text == '{"detail":"Method Not Allowed"}'


def test_a_body_that_is_no_json_is_422(master: Client) -> None:
    url = f"{master.service.base_url}{ROOT}/v1/chat/completions"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {master.key}"}

    ((place, _),) = wrong_fields(HTTP.post(url, content=b'{"model": ', headers=headers))
    assert place == ["body", 10]
    # Before anybody looks at the key, too.
    for key in ({}, {"Authorization": "Bearer sk-unknown"}, {"Authorization": f"bearer {master.key}"}):
        answer = HTTP.post(url, content=b'{"model": ', headers={"Content-Type": "application/json", **key})
        assert [place for place, _ in wrong_fields(answer)] == [["body", 10]]


@pytest.mark.parametrize(
    ("method", "kind", "body"),
    [
        ("POST", "application/json", b""),
        ("POST", "application/json", b"null"),
        ("POST", "application/json", b'{"messages": 5}'),
        ("POST", "text/plain", b"{"),
        ("POST", "multipart/form-data; boundary=x", b"{"),
        ("POST", "application/json", b"{" * 100_000),
        ("GET", "application/json", b"{"),
    ],
)
def test_of_a_strangers_body_only_a_short_one_that_is_no_json_is_spoken(
    master: Client, method: str, kind: str, body: bytes
) -> None:
    path = "/chat/completions" if method == "POST" else "/models"
    url = f"{master.service.base_url}{ROOT}/v1{path}"
    answer = HTTP.request(method, url, content=body, headers={"Content-Type": kind})
    assert refusal(answer, 401) == "Not authenticated"


def test_a_body_that_is_no_json_comes_before_missing_rights(nobody: Client) -> None:
    headers = {"Content-Type": "application/json"}
    for content, status in ((b"{", 422), (b"{}", 403)):
        assert nobody.call("POST", "/admin/roles", content=content, headers=headers).status_code == status


def test_a_key_is_looked_at_before_fields_and_rights_before_fields(master: Client, nobody: Client) -> None:
    assert send(master, "POST", "/v1/admin/roles").status_code == 401
    assert Client(master.service, "sk-bad").post("/admin/roles", {"name": 5}).status_code == 403
    assert refusal(nobody.post("/admin/roles", {"name": 5}), 403) == "Insufficient rights."


def test_a_model_that_is_not_ones_own_is_answered_like_none(master: Client) -> None:
    hidden = unique("hidden")
    router = master.make("/admin/routers", name=unique("seen"), type="text-generation")["id"]
    master.make("/admin/routers", name=hidden, type="text-generation")
    user = user_of(master, role_limits=limits(router))

    for name in (hidden, "none"):
        body: dict[str, Any] = {"model": name, "messages": []}
        assert user.post("/chat/completions", body).text == '{"detail":"Model not found."}'
        # Limits count only for models that are there; so the fields come next, and tell nothing of the others.
        ((place, _),) = wrong_fields(user.post("/chat/completions", {**body, "temperature": "warm"}))
        assert place == ["body", "temperature"]


def test_unknown_fields_and_parameters_do_not_matter(admin: Client) -> None:
    made = admin.make("/admin/organizations", name=unique("lax"), colour="red", nested={"a": [1]})

    assert admin.get(f"/admin/organizations/{made['id']}", colour="red").status_code == 200


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "string_type"),
        (5, "string_type"),
        ([], "string_type"),
        ({}, "string_type"),
        ("", "string_too_short"),
    ],
)
def test_items_of_a_422_say_what_came(admin: Client, value: Any, kind: str) -> None:
    (wrong,) = refusal(admin.post("/admin/organizations", {"name": value}), 422)

    assert (wrong["type"], wrong["loc"], wrong["input"]) == (kind, ["body", "name"], value)


def test_what_needs_a_vector_store_says_so(nobody: Client) -> None:
    for method, path in (("GET", "/collections"), ("GET", "/documents"), ("POST", "/search")):
        text = refusal(nobody.call(method, path), 403)
        assert text == "Feature not enabled, please contact an administrator."


@pytest.mark.parametrize(("text", "offset"), [("1.0", 1), ("2.000", 2), ("0", 0)])
def test_whole_numbers_of_a_query_may_have_a_point(admin: Client, text: str, offset: int) -> None:
    every = admin.read("/admin/roles", limit="100.0")["data"]

    assert admin.read("/admin/roles", offset=text, limit=100)["data"] == every[offset:]
    for wrong in ("1.5", "1.", ".0"):
        ((place, _),) = wrong_fields(admin.get("/admin/roles", offset=wrong))
        assert place == ["query", "offset"]


@pytest.mark.parametrize("word", ["yes", "NO", "on", "off", "t", "F", "y", "n", "1", 0, 1.0, "true"])
def test_truth_has_many_forms(master: Client, word: Any) -> None:
    body = {"model": "none", "messages": [], "stream": word, "logprobs": word}

    assert refusal(master.post("/chat/completions", body), 404) == "Model not found."
    ((place, _),) = wrong_fields(master.post("/chat/completions", {**body, "stream": "maybe"}))
    assert place == ["body", "stream"]


@pytest.mark.parametrize("form", [" {} ", "+{}", "0{}", "{}.0", "{}.00"])
def test_numbers_may_be_written_as_texts(admin: Client, form: str) -> None:
    role = admin.make("/admin/roles", name=unique("lax"))["id"]
    expires = int(time.time()) + 3600
    texts = {"role": form.format(role), "budget": form.format(3), "expires": form.format(expires)}
    user = admin.make("/admin/users", email=unique("lax"), password="x", **texts)["id"]

    shown = admin.read(f"/admin/users/{user}")
    assert {name: shown[name] for name in texts} == {"role": role, "budget": 3.0, "expires": expires}
    # One that is none does not make the others wrong.
    wrong = {"email": "x", "password": "x", **texts, "role": "first"}
    assert [place for place, _ in wrong_fields(admin.post("/admin/users", wrong))] == [["body", "role"]]


def test_rules_beyond_types_say_what_came_too(admin: Client) -> None:
    for path, body, field in (
        ("/admin/users", {"email": "x", "password": "x", "role": 1, "expires": 5}, "expires"),
        ("/admin/providers", {"router": 1, "type": "vllm", "model_name": "x"}, "url"),
        ("/admin/providers", {"router": 1, "type": "local", "model_name": "x"}, "type"),
    ):
        (wrong,) = refusal(admin.post(path, body), 422)
        assert (wrong["loc"], wrong["input"]) == (["body", field], body.get(field))


def test_a_login_names_all_that_is_missing(master: Client) -> None:
    answer = master.post("/auth/login", {"email": "", "password": ""})

    assert wrong_fields(answer) == [
        (["body", field], "String should have at least 1 character") for field in ("email", "password")
    ]
