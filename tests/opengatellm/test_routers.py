"""The life of a router and its providers, from making to removal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.opengatellm.gate import Client, body_of, limits, refusal, unique, user_of, wrong_fields

DEAD = "http://127.0.0.1:9"


def router(admin: Client, kind: str = "text-generation", **fields: Any) -> tuple[int, str]:
    """Make a router; return its id and name."""
    name = unique("router")
    return admin.make("/admin/routers", name=name, type=kind, **fields)["id"], name


def provider(admin: Client, of: int, upstream: FakeUpstream, **fields: Any) -> Any:
    """Put the upstream behind a router."""
    body = {"router": of, "type": "vllm", "url": upstream.base_url, "model_name": MODEL, **fields}
    return admin.make("/admin/providers", **body)


def ask(client: Client, model: str) -> Any:
    """Ask a model to chat."""
    return client.post("/chat/completions", {"model": model, "messages": [{"role": "user", "content": "x"}]})


def test_from_a_router_to_an_answer_and_back(admin: Client, upstream: FakeUpstream) -> None:
    number, name = router(admin, aliases=[unique("alias")])
    user = user_of(admin, role_limits=limits(number))
    assert refusal(ask(user, name), 404) == "Model not found."
    assert user.read("/models")["data"] == []

    made = provider(admin, number, upstream, key="sk-upstream")["id"]
    assert [card["id"] for card in user.read("/models")["data"]] == [name]
    assert body_of(ask(user, name))["choices"][0]["message"]["content"] == "one two three"
    assert upstream.posted[-1].headers["Authorization"] == "Bearer sk-upstream"

    deleted = body_of(admin.delete(f"/admin/providers/{made}"))
    assert (deleted["object"], deleted["id"]) == ("provider", made)
    assert refusal(ask(user, name), 404) == "Model not found."
    deleted = body_of(admin.delete(f"/admin/routers/{number}"))
    assert (deleted["object"], deleted["id"], deleted["name"]) == ("router", number, name)
    assert refusal(admin.get(f"/admin/routers/{number}"), 404) == f"Model router {number} not found."
    assert admin.read(f"/admin/roles/{user.role}")["limits"] == []


# -- routers


def test_a_router_is_answered_as_made_and_listed_with_its_providers(
    master: Client, administrator: Client, upstream: FakeUpstream
) -> None:
    for admin in (master, administrator):
        name = unique("shown")
        made = admin.make(
            "/admin/routers", name=f" {name} ", type="text-generation", cost_prompt_tokens="0.5"
        )
        assert made == {
            "id": made["id"],
            "name": name,
            "type": "text-generation",
            "aliases": [],
            "load_balancing_strategy": "shuffle",
            "cost_prompt_tokens": 0.5,
            "cost_completion_tokens": 0.0,
        }
        provider(admin, made["id"], upstream)
        shown = admin.read(f"/admin/routers/{made['id']}")
        assert shown.pop("created") <= shown.pop("updated")
        assert shown == {
            **made,
            "object": "router",
            "user_id": admin.user,
            "vector_size": None,
            "max_context_length": 4096,
            "providers": 1,
        }


def test_routers_are_listed_with_their_total(admin: Client) -> None:
    router(admin)
    page = admin.read("/admin/routers", offset=0, limit=2, sort_by="name", sort_order="desc")

    assert set(page) == {"object", "total", "offset", "limit", "data"}
    assert (page["object"], page["offset"], page["limit"]) == ("list", 0, 2)
    beyond = admin.read("/admin/routers", offset=1000)
    assert (beyond["total"], beyond["data"]) == (page["total"], [])
    names = [each["name"] for each in admin.read("/admin/routers", limit=100, sort_by="name")["data"]]
    assert names == sorted(names)
    # As the Playground asks.
    assert admin.get("/admin/routers", order_by="id", order_direction="asc", offset=0, limit=10).is_success


def test_names_and_aliases_are_unique(admin: Client) -> None:
    aliases = [unique("a"), unique("b")]
    _, name = router(admin, aliases=aliases)

    def made_with(**fields: Any) -> Any:
        return admin.post("/admin/routers", {"name": unique("r"), "type": "text-generation", **fields})

    assert refusal(made_with(name=name), 409) == f"Router {name} already exists."
    taken = refusal(made_with(aliases=aliases), 409)
    assert taken == f"Following aliases already exist: '['{aliases[0]}', '{aliases[1]}']'"
    other, _ = router(admin)
    for change in ({"name": name}, {"aliases": aliases[:1]}):
        text = refusal(admin.patch(f"/admin/routers/{other}", change), 409)
        assert text == "Name conflict with existing router or alias."


def test_a_router_is_changed_by_what_is_given(admin: Client) -> None:
    number, name = router(admin, aliases=[unique("kept")], cost_prompt_tokens=1)
    before = admin.read(f"/admin/routers/{number}")
    admin.change(f"/admin/routers/{number}", load_balancing_strategy="least_busy", aliases=None)
    after = admin.read(f"/admin/routers/{number}")

    changed = {key for key in after if after[key] != before[key]} - {"updated"}
    assert changed == {"load_balancing_strategy"}
    admin.change(f"/admin/routers/{number}", aliases=[], cost_completion_tokens=2.5)
    after = admin.read(f"/admin/routers/{number}")
    assert (after["name"], after["aliases"], after["cost_completion_tokens"]) == (name, [], 2.5)
    unknown = admin.patch("/admin/routers/999999", {})
    assert refusal(unknown, 404) == "Model router not found."
    for answer in (admin.get("/admin/routers/999999"), admin.delete("/admin/routers/999999")):
        assert refusal(answer, 404) == "Model router 999999 not found."


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"name": " "}, ["body", "name"]),
        ({"type": "poetry"}, ["body", "type"]),
        ({"aliases": [""]}, ["body", "aliases", 0]),
        ({"aliases": ["x" * 65]}, ["body", "aliases", 0]),
        ({"load_balancing_strategy": "round_robin"}, ["body", "load_balancing_strategy"]),
        ({"cost_prompt_tokens": -1}, ["body", "cost_prompt_tokens"]),
        ({"cost_completion_tokens": "dear"}, ["body", "cost_completion_tokens"]),
    ],
)
def test_wrong_routers_are_422(admin: Client, fields: dict[str, Any], place: list[Any]) -> None:
    body = {"name": unique("wrong"), "type": "text-generation", **fields}

    assert [where for where, _ in wrong_fields(admin.post("/admin/routers", body))] == [place]


# -- providers


def test_a_provider_is_answered_listed_and_changed(admin: Client, upstream: FakeUpstream) -> None:
    number, _ = router(admin)
    made = provider(admin, number, upstream, key="sk-upstream", model_total_params=8)

    assert made.pop("created")
    assert made == {
        "id": made["id"],
        "router_id": number,
        "user_id": admin.user,
        "type": "vllm",
        "url": f"{upstream.base_url}/",
        "key": "********",
        "timeout": 300,
        "model_name": MODEL,
        "model_hosting_zone": "WOR",
        "model_total_params": 8,
        "model_active_params": made["model_active_params"],
        "qos_metric": None,
        "qos_limit": None,
        "updated": None,
    }
    admin.change(
        f"/admin/providers/{made['id']}",
        timeout=10,
        model_hosting_zone="FRA",
        qos_metric="inflight",
        qos_limit=4,
    )
    shown = admin.read(f"/admin/providers/{made['id']}")
    assert (shown["object"], shown["timeout"], shown["model_hosting_zone"]) == ("provider", 10, "FRA")
    assert (shown["qos_metric"], shown["qos_limit"]) == ("inflight", 4.0)
    assert shown["updated"] is not None
    assert admin.read("/admin/providers", router=number)["data"] == [shown]
    assert admin.read("/admin/providers", router=number, offset=1)["data"] == []
    other, _ = router(admin)
    admin.change(f"/admin/providers/{made['id']}", router=other)
    assert admin.read("/admin/providers", router=number)["data"] == []
    assert admin.read(f"/admin/routers/{other}")["providers"] == 1


def test_wrong_providers_are_refused(admin: Client, upstream: FakeUpstream) -> None:
    number, _ = router(admin)
    body = {"router": number, "type": "vllm", "url": upstream.base_url, "model_name": MODEL}

    def made_with(**fields: Any) -> Any:
        return admin.post("/admin/providers", {**body, **fields})

    assert refusal(made_with(router=999_999), 404) == "Model router 999999 not found."
    assert (
        refusal(made_with(type="tei"), 400) == "Invalid model provider type tei for text-generation router."
    )
    for nowhere in ({"url": DEAD}, {"model_name": "another"}):
        name = nowhere.get("model_name", MODEL)
        assert refusal(made_with(**nowhere), 424) == f"Model provider {name} not reachable."
    provider(admin, number, upstream)
    url = f"{upstream.base_url}/"
    assert (
        refusal(made_with(), 409)
        == f"Model provider {MODEL} for url {url} already exists for router {number}."
    )
    (_, text), *_ = wrong_fields(made_with(url=None))
    assert text == "Value error, URL is required for this model provider type."
    (_, text), *_ = wrong_fields(made_with(qos_metric="ttft"))
    assert text == "Value error, QoS value is required if QoS metric is provided."


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"type": "ollama"}, ["body", "type"]),
        ({"url": " "}, ["body", "url"]),
        ({"key": ""}, ["body", "key"]),
        ({"model_hosting_zone": "XXX"}, ["body", "model_hosting_zone"]),
        ({"model_total_params": -1}, ["body", "model_total_params"]),
        ({"qos_metric": "mood", "qos_limit": 1}, ["body", "qos_metric"]),
        ({"qos_metric": "ttft", "qos_limit": -1}, ["body", "qos_limit"]),
    ],
)
def test_wrong_fields_of_a_provider_are_named(
    admin: Client, upstream: FakeUpstream, fields: dict[str, Any], place: list[Any]
) -> None:
    body = {"router": 1, "type": "vllm", "url": upstream.base_url, "model_name": MODEL, **fields}

    assert [where for where, _ in wrong_fields(admin.post("/admin/providers", body))] == [place]


@pytest.mark.parametrize("field", ["model_total_params", "model_active_params"])
def test_parameters_are_whole_billions(master: Client, upstream: FakeUpstream, field: str) -> None:
    router = master.make("/admin/routers", name=unique("whole"), type="text-generation")["id"]
    body = {"router": router, "type": "vllm", "url": upstream.base_url, "model_name": MODEL}
    wrong = [(["body", field], "Input should be a valid integer, got a number with a fractional part")]

    assert wrong_fields(master.post("/admin/providers", {**body, field: 0.5})) == wrong
    made = master.make("/admin/providers", **body, **{field: 8.0})
    assert (made[field], type(made[field])) == (8, int)
    assert wrong_fields(master.patch(f"/admin/providers/{made['id']}", {field: 7.5})) == wrong
    master.change(f"/admin/providers/{made['id']}", **{field: "70"})
    assert master.read(f"/admin/providers/{made['id']}")[field] == 70


@pytest.mark.parametrize("kind", ["local", "appliance", "azure", None])
def test_a_providers_type_is_one_of_five(master: Client, kind: str | None) -> None:
    (wrong,) = refusal(master.post("/admin/providers", {"router": 1, "type": kind, "model_name": "x"}), 422)

    words = "'albert', 'openai', 'mistral', 'tei' or 'vllm'"
    assert wrong == {
        "loc": ["body", "type"],
        "msg": f"Input should be {words}",
        "type": "enum",
        "input": kind,
        "ctx": {"expected": words},
    }


def test_wrong_moves_of_a_provider_are_refused(admin: Client, upstream: FakeUpstream) -> None:
    number, _ = router(admin)
    made = provider(admin, number, upstream)["id"]
    images, _ = router(admin, "image-to-text")
    twin, _ = router(admin)
    provider(admin, twin, upstream)

    def moved(**fields: Any) -> Any:
        return admin.patch(f"/admin/providers/{made}", fields)

    assert refusal(moved(router=999_999), 404) == "Model router not found."
    assert refusal(moved(router=images), 400) == "New router type is not compatible with the provider type."
    assert refusal(moved(router=twin), 409) == "provider already exists for the new router."
    (_, text), *_ = wrong_fields(moved(qos_metric="latency"))
    assert text == "Value error, QoS value is required if QoS metric is provided."
    for method, words in (
        ("GET", "Model provider not found."),
        ("PATCH", "Model provider not found."),
        ("DELETE", "Model provider 999999 not found."),
    ):
        body: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
        assert refusal(admin.call(method, "/admin/providers/999999", **body), 404) == words


def test_a_zone_that_is_none_is_answered_by_all_there_are(admin: Client) -> None:
    body = {"router": 1, "type": "vllm", "url": "http://127.0.0.1:9/", "model_name": MODEL}
    (wrong,) = refusal(admin.post("/admin/providers", {**body, "model_hosting_zone": "fra"}), 422)

    assert (wrong["type"], wrong["input"]) == ("enum", "fra")
    assert wrong["msg"] == f"Input should be {wrong['ctx']['expected']}"
    assert wrong["msg"].startswith("Input should be 'ABW', 'AFG', ")
    assert wrong["msg"].endswith(", 'ZMB' or 'ZWE'")
