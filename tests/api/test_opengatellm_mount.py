"""OpenGateLLM's strict mount: its routes, and its own ways with what the union does otherwise."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute

from appliance.api.dialect import OPENGATELLM
from appliance.api.knowledge.not_enabled import ROUTES as KNOWLEDGE
from appliance.api.routes import routes
from appliance.config import TAGS, ConfigError, Settings, load_settings
from tests.api.asking import QUESTION, answer_of, content, post_chat
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service, running_service

MOUNT = "/opengatellm/v1"
# The 63 operations of the published page; parameters have no names here.
OPERATIONS = {
    *(("POST", "/v1/admin/providers"), ("GET", "/v1/admin/providers")),
    *((method, "/v1/admin/providers/{}") for method in ("DELETE", "PATCH", "GET")),
    *(("POST", "/v1/admin/routers"), ("GET", "/v1/admin/routers")),
    *((method, "/v1/admin/routers/{}") for method in ("GET", "DELETE", "PATCH")),
    *(
        (method, f"/v1/admin/{name}")
        for name in ("organizations", "roles", "users")
        for method in ("POST", "GET")
    ),
    *(
        (method, f"/v1/admin/{name}/{{}}")
        for name in ("organizations", "roles", "users")
        for method in ("GET", "PATCH", "DELETE")
    ),
    *(("POST", "/v1/admin/tokens"), ("GET", "/v1/admin/tokens")),
    *(("GET", "/v1/admin/tokens/{}"), ("DELETE", "/v1/admin/tokens/{}")),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/auth/login"),
    ("POST", "/v1/chat/completions"),
    *(("GET", "/v1/chunks/{}/{}"), ("GET", "/v1/chunks/{}")),
    *(("POST", "/v1/collections"), ("GET", "/v1/collections")),
    *((method, "/v1/collections/{}") for method in ("GET", "PATCH", "DELETE")),
    *(("POST", "/v1/documents"), ("GET", "/v1/documents")),
    *(("GET", "/v1/documents/{}"), ("DELETE", "/v1/documents/{}")),
    *(("POST", "/v1/documents/{}/chunks"), ("GET", "/v1/documents/{}/chunks")),
    *(("GET", "/v1/documents/{}/chunks/{}"), ("DELETE", "/v1/documents/{}/chunks/{}")),
    ("POST", "/v1/embeddings"),
    *(("GET", "/v1/me/info"), ("PATCH", "/v1/me/info")),
    *(("POST", "/v1/me/keys"), ("GET", "/v1/me/keys")),
    *(("GET", "/v1/me/keys/{}"), ("DELETE", "/v1/me/keys/{}")),
    ("GET", "/v1/me/usage"),
    *(("GET", "/v1/models"), ("GET", "/v1/models/{}")),
    ("POST", "/v1/ocr"),
    ("POST", "/v1/parse-beta"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/search"),
    *(("GET", "/metrics"), ("GET", "/health")),
}
CARD = {"id", "type", "aliases", "created", "owned_by", "max_context_length", "costs", "object"}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "cost", "carbon", "requests"}
SEARCH_REFUSED = "Search tool is not enabled because Elasticsearch is not configured."


def operations(settings: Settings) -> set[tuple[str, str]]:
    """Return what is served below the mount's platform, paths without the names of their parameters."""
    found: set[tuple[str, str]] = set()
    for route in Litestar(route_handlers=routes(settings), openapi_config=None).routes:
        assert isinstance(route, HTTPRoute)
        if not route.path_format.startswith(OPENGATELLM.platform + "/"):
            continue
        path = re.sub(r"\{[^}]*\}", "{}", route.path_format.removeprefix(OPENGATELLM.platform))
        found |= {(str(method), path) for method in route.route_handler_map if method != "OPTIONS"}
    return found


def refusal(response: httpx.Response, status: int) -> Any:
    """Return the detail of an error, which holds nothing else."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"detail"}
    return body["detail"]


def post(service: Service, path: str, body: dict[str, Any]) -> httpx.Response:
    with service.http as http:
        return http.post(f"{MOUNT}{path}", json=body)


def test_the_mount_has_the_63_operations_and_no_other() -> None:
    assert len(OPERATIONS) == 63
    assert operations(Settings()) == OPERATIONS


def test_the_union_has_them_too(bare_service: Service) -> None:
    paths = httpx.get(f"{bare_service.base_url}/openapi.json").json()["paths"]
    union = {(method.upper(), path) for path, item in paths.items() for method in item}
    for method, path in OPERATIONS - {("GET", "/metrics"), ("GET", "/health")}:
        parts = path.split("/")
        assert any(
            method == other
            and len(parts) == len(names := name.split("/"))
            and all(
                mine == theirs or (mine == "{}" and theirs.startswith("{"))
                for mine, theirs in zip(parts, names, strict=True)
            )
            for other, name in union
        ), (method, path)


def test_a_wrong_method_is_told_those_that_there_are(bare_service: Service) -> None:
    with bare_service.http as http:
        allowed = [http.request(method, f"{MOUNT}/models").headers["Allow"] for method in ("PUT", "OPTIONS")]
    assert allowed == ["GET", "GET"]


# -- models


def test_cards_have_exactly_the_keys_of_the_api(service: Service) -> None:
    with service.http as http:
        listed = http.get(f"{MOUNT}/models").json()
        one = http.get(f"{MOUNT}/models/{CHAT}").json()
        routers = http.get("/v1/admin/routers", params={"limit": 100}).json()["data"]

    assert set(listed) == {"object", "data"}
    assert all(
        set(card) == CARD and set(card["costs"]) == {"prompt_tokens", "completion_tokens"}
        for card in listed["data"]
    )
    assert {card["id"] for card in listed["data"]} >= {CHAT, EMBEDDING, RERANK, SPEECH}
    order = [router["name"] for router in routers]
    assert [card["id"] for card in listed["data"]] == [
        name for name in order if name in {card["id"] for card in listed["data"]}
    ]
    assert one == next(card for card in listed["data"] if card["id"] == CHAT)
    assert one["type"] == "text-generation"
    assert one["owned_by"] == "appliance"


# -- chat


def test_a_chat_answer_has_the_keys_of_the_api(service: Service) -> None:
    answer = answer_of(post_chat(service, MOUNT, logprobs=True, top_logprobs=1))

    assert set(answer) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "service_tier",
        "system_fingerprint",
        "usage",
    }
    assert set(answer["usage"]) == USAGE
    assert set(answer["usage"]["carbon"]) == {"kWh", "kgCO2eq"}
    assert answer["usage"]["requests"] == 1
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["logprobs"]) == {"content", "refusal"}
    assert set(choice["logprobs"]["content"][0]) == {"token", "bytes", "logprob", "top_logprobs"}
    assert set(choice["message"]) <= {
        *("role", "content", "refusal", "annotations", "audio", "function_call", "tool_calls")
    }


def test_a_stream_ends_with_its_usage_whether_asked_or_not(service: Service) -> None:
    for options in (None, {"include_usage": True}, {"include_usage": False}):
        fields = {} if options is None else {"stream_options": options}
        text = post_chat(service, MOUNT, stream=True, **fields).text
        lines = [line for line in text.split("\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert set(events[-1]) == {
            "id",
            "object",
            "created",
            "model",
            "system_fingerprint",
            "choices",
            "usage",
        }
        assert events[-1]["choices"] == []
        assert set(events[-1]["usage"]) == USAGE
        assert events[-1]["usage"]["completion_tokens"] > 0
        for event in events[:-1]:
            assert event.get("usage") is None
            assert all(
                set(choice) == {"index", "delta", "logprobs", "finish_reason"} for choice in event["choices"]
            )


def test_without_a_temperature_chats_vary(service: Service) -> None:
    answers = {content(answer_of(post_chat(service, MOUNT, max_tokens=24, seed=seed))) for seed in range(8)}
    greedy = {
        content(answer_of(post_chat(service, MOUNT, max_tokens=24, temperature=0, seed=seed)))
        for seed in range(2)
    }

    assert len(answers) > 1
    assert len(greedy) == 1


@pytest.mark.parametrize(("stops", "status"), [(4, 200), (5, 422)])
def test_a_chat_has_at_most_four_stops(service: Service, stops: int, status: int) -> None:
    answer = post_chat(service, MOUNT, stop=[f"<{number}>" for number in range(stops)])

    assert answer.status_code == status
    assert post_chat(service, "/v1", stop=["<1>"] * 5).status_code == 200
    if status == 422:
        (wrong,) = refusal(answer, 422)
        assert wrong["loc"] == ["body", "stop"]
        assert wrong["type"] == "too_long"
        assert wrong["msg"] == "List should have at most 4 items after validation, not 5"


def test_fields_of_the_model_server_are_its_400_and_those_of_the_api_a_422(service: Service) -> None:
    assert isinstance(refusal(post_chat(service, MOUNT, ignore_eos=10), 400), str)
    assert isinstance(refusal(post_chat(service, MOUNT, messages=[{"content": "x"}]), 400), str)
    assert isinstance(refusal(post_chat(service, MOUNT, temperature=3), 400), str)
    for field, value, kind in (("user", 5, "string_type"), ("tools", [5], "dict_type")):
        (wrong,) = refusal(post_chat(service, MOUNT, **{field: value}), 422)
        assert (wrong["loc"][:2], wrong["type"]) == (["body", field], kind)
        assert post_chat(service, "/v1", user=5).status_code == 200
    (wrong,) = refusal(post_chat(service, MOUNT, ignore_eos=10, temperature="warm"), 422)
    assert wrong == {
        "loc": ["body", "temperature"],
        "msg": "Input should be a valid number, unable to parse string as a number",
        "type": "float_parsing",
        "input": "warm",
    }


@pytest.mark.parametrize("mount", [MOUNT, "/v1"])
@pytest.mark.parametrize(
    "fields",
    [
        {"search": True, "search_args": {"collections": [1]}},
        {"tools": [{"type": "search", "collection_ids": [1], "k": 5}]},
        {"tools": [{"type": "search", "metadata_filters": {"key": "a", "type": "eq", "value": 1}}]},
    ],
)
def test_a_search_is_refused_without_a_vector_store(
    service: Service, mount: str, fields: dict[str, Any]
) -> None:
    answer = post_chat(service, mount, **fields)

    assert answer.status_code == 403
    assert answer.json()["detail"] == SEARCH_REFUSED


@pytest.mark.parametrize(
    ("fields", "location", "message"),
    [
        ({"search": True}, ["body"], "Value error, search_args is required when search is True"),
        (
            {"search": True, "search_args": {"limit": 101}},
            ["body", "search_args", "limit"],
            "Input should be less than or equal to 100",
        ),
        (
            {"search": True, "search_args": {"collection_ids": [0]}},
            ["body", "search_args", "collection_ids", 0],
            "Input should be greater than 0",
        ),
        (
            {"tools": [{"type": "search", "method": "telepathic"}]},
            ["body", "tools", 0, "method"],
            "Input should be 'semantic', 'lexical' or 'hybrid'",
        ),
        (
            {"tools": [{"type": "search", "metadata_filters": {"filters": [], "operator": "and"}}]},
            ["body", "tools", 0, "metadata_filters", "filters"],
            "List should have at least 2 items after validation, not 0",
        ),
    ],
)
def test_wrong_search_arguments_are_named(
    service: Service, fields: dict[str, Any], location: list[Any], message: str
) -> None:
    (wrong,) = refusal(post_chat(service, MOUNT, **fields), 422)

    assert wrong["loc"] == location
    assert wrong["msg"] == message
    assert post_chat(service, "/v1", **fields).status_code == 400


def test_a_search_that_is_none_is_no_matter(service: Service) -> None:
    assert post_chat(service, MOUNT, search=False, search_args=None).status_code == 200
    assert post_chat(service, "/compressa/v1", search=True).status_code == 200


@pytest.mark.parametrize(
    ("value", "status"), [("true", 403), ("on", 403), ("false", 200), ("0", 200), ("perhaps", 422), ("", 422)]
)
def test_a_chat_that_requires_a_vector_store_is_told_that_there_is_none(
    service: Service, value: str, status: int
) -> None:
    with service.http as http:
        answers = [
            http.post(
                f"{mount}/chat/completions",
                params={"required": value},
                json={"model": CHAT, "messages": QUESTION, "max_tokens": 1},
            )
            for mount in (MOUNT, "/v1")
        ]

    assert [answer.status_code for answer in answers] == [status, status]
    if status == 422:
        (wrong,) = refusal(answers[0], 422)
        assert (wrong["loc"], wrong["type"]) == (["query", "required"], "bool_parsing")
    if status == 403:
        assert refusal(answers[0], 403) == "Feature not enabled, please contact an administrator."


# -- embeddings and rerank


def test_embeddings_have_the_keys_of_the_api(service: Service) -> None:
    answer = answer_of(post(service, "/embeddings", {"model": EMBEDDING, "input": ["a", "b"]}))

    assert set(answer) == {"object", "id", "model", "data", "usage"}
    assert set(answer["data"][0]) == {"object", "index", "embedding"}
    assert set(answer["usage"]) == USAGE
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "location", "kind"),
    [
        ({"input": ""}, ["body", "input"], "string_too_short"),
        ({"input": []}, ["body", "input"], "too_short"),
        ({"input": 5}, ["body", "input", "str"], "string_type"),
        ({"input": [{}]}, ["body", "input", "list[int]", 0], "int_type"),
        ({}, ["body", "input"], "missing"),
        ({"input": "a", "encoding_format": "base64"}, ["body", "encoding_format"], "literal_error"),
        ({"input": "a", "encoding_format": True}, ["body", "encoding_format"], "literal_error"),
        ({"input": "a", "dimensions": "many"}, ["body", "dimensions"], "int_parsing"),
    ],
)
def test_wrong_embedding_fields_are_named(
    service: Service, fields: dict[str, Any], location: list[Any], kind: str
) -> None:
    wrong = refusal(post(service, "/embeddings", {"model": EMBEDDING, **fields}), 422)

    assert (wrong[0]["loc"], wrong[0]["type"]) == (location, kind)
    assert all(set(each) - {"ctx"} == {"loc", "type", "msg", "input"} for each in wrong)


def test_rerank_answers_as_the_api_does(service: Service) -> None:
    documents = ["Berlin is a city.", "Paris is the capital of France.", "Bread is made of flour."]
    body = {"model": RERANK, "documents": documents}
    answer = answer_of(post(service, "/rerank", {**body, "query": "capital of France"}))
    alias = answer_of(post(service, "/rerank", {**body, "prompt": "capital of France", "top_n": 1}))

    assert set(answer) == {"object", "id", "results", "model", "usage"}
    assert answer["object"] == "list"
    assert answer["model"] == RERANK
    assert all(set(result) == {"relevance_score", "index"} for result in answer["results"])
    assert answer["results"][0]["index"] == 1
    assert set(answer["usage"]) == USAGE
    assert alias["results"] == answer["results"][:1]
    with service.http as http:
        union = http.post("/v1/rerank", json={**body, "query": "capital of France"}).json()
    assert union["object"] == "rerank"


def test_no_documents_give_no_results(service: Service) -> None:
    answer = answer_of(post(service, "/rerank", {"model": RERANK, "query": "q", "documents": []}))

    assert answer["results"] == []
    assert answer["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "location", "message"),
    [
        ({"documents": ["a"]}, ["body", "query"], "Field required"),
        (
            {"documents": ["a"], "query": "q", "prompt": "q"},
            ["body"],
            "Value error, query and prompt cannot be given together",
        ),
        ({"documents": ["a"], "query": " "}, ["body", "query"], "String should have at least 1 character"),
        (
            {"documents": ["a", " "], "query": "q"},
            ["body", "documents", 1],
            "String should have at least 1 character",
        ),
        (
            {"documents": [{"text": "a"}], "query": "q"},
            ["body", "documents", 0],
            "Input should be a valid string",
        ),
        (
            {"documents": ["a"], "query": "q", "top_n": 0},
            ["body", "top_n"],
            "Input should be greater than or equal to 1",
        ),
    ],
)
def test_wrong_rerank_fields_are_named(
    service: Service, fields: dict[str, Any], location: list[Any], message: str
) -> None:
    (wrong,) = refusal(post(service, "/rerank", {"model": RERANK, **fields}), 422)

    assert wrong["loc"] == location
    assert wrong["msg"] == message


def test_space_around_the_name_of_a_reranker_does_not_count(service: Service) -> None:
    body = {"model": f" {RERANK}\n", "query": "q", "documents": ["a"]}

    assert answer_of(post(service, "/rerank", body))["model"] == RERANK
    for name in ("", " "):
        (wrong,) = refusal(post(service, "/rerank", {**body, "model": name}), 422)
        assert (wrong["loc"], wrong["type"]) == (["body", "model"], "string_too_short")


@pytest.mark.parametrize("path", ["/rerank", "/embeddings", "/chat/completions"])
def test_the_model_must_be_named(service: Service, path: str) -> None:
    body: dict[str, Any] = {"query": "q", "documents": ["a"], "input": "a", "messages": QUESTION}
    (wrong,) = refusal(post(service, path, body), 422)

    assert (wrong["loc"], wrong["type"], wrong["msg"]) == (["body", "model"], "missing", "Field required")
    assert refusal(post(service, path, {**body, "model": "default/not-specified"}), 404) == "Model not found."


# -- what needs a vector store


@pytest.mark.parametrize("mount", [MOUNT, "/v1"])
def test_what_needs_a_vector_store_is_not_enabled(bare_service: Service, mount: str) -> None:
    assert len(KNOWLEDGE) == 17
    with bare_service.http as http:
        for route in KNOWLEDGE:
            path = route.path.replace(":str", "").format(
                document_id=1, collection_id=1, chunk_id=1, document=1, chunk=1
            )
            answer = http.request(route.method, mount + path, params={"required": "false"})
            assert answer.status_code == 403, route
            assert answer.json()["detail"] == "Feature not enabled, please contact an administrator."
            assert ("error" in answer.json()) == (mount == "/v1")


# -- settings


def test_routes_are_removed_and_hidden_by_tag(tmp_path: Any) -> None:
    settings = {
        "APPLIANCE_DISABLED_ROUTERS": "audio, Collections",
        "APPLIANCE_HIDDEN_ROUTERS": "Admin",
        "APPLIANCE_APP_TITLE": "Town <Hall>",
    }
    with running_service(tmp_path / "data", **settings) as service, service.http as http:
        document = http.get("/openapi.json").json()
        tags = {tag for item in document["paths"].values() for each in item.values() for tag in each["tags"]}
        assert document["info"]["title"] == "Town <Hall>"
        assert "<title>Town &lt;Hall&gt; API</title>" in http.get("/docs").text
        assert not tags & {"Audio", "Collections", "Admin"}
        assert tags >= {"Chat", "Documents", "opengatellm"}
        assert not any("/admin/" in path for path in document["paths"])
        for mount in ("/v1", MOUNT):
            assert http.post(f"{mount}/audio/transcriptions").status_code == 404
            assert http.get(f"{mount}/collections").status_code == 404
            assert http.get(f"{mount}/admin/organizations").status_code == 200
            assert http.get(f"{mount}/documents").status_code == 403


def test_a_tag_that_no_route_has_is_an_error() -> None:
    with pytest.raises(ConfigError, match="disabled_routers: no routes are tagged 'Chatt'"):
        load_settings({}, {"APPLIANCE_DISABLED_ROUTERS": "Chatt"})


def test_the_tags_of_the_settings_are_those_of_the_routes() -> None:
    app = Litestar(route_handlers=routes(Settings()), openapi_config=None)
    tags = {
        tag
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler, _ in route.route_handler_map.values()
        for tag in handler.tags or ()
    }

    assert tags == set(TAGS)
