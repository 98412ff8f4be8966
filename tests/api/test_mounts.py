"""The strict mounts: the routes of each API, and the points in which each has its own way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service

GENERATION = {
    ("get", "/models"),
    ("get", "/models/{model_id}"),
    ("post", "/chat/completions"),
    ("post", "/completions"),
}
# What each API publishes, of what this box serves.
ROUTES = {
    "/v1": {
        *GENERATION,
        ("post", "/embeddings"),
        ("post", "/rerank"),
        ("post", "/audio/transcriptions"),
        ("get", "/gpu_info"),
    },
    "/compressa/v1": {*GENERATION, ("post", "/embeddings"), ("post", "/rerank"), ("get", "/gpu_info")},
    "/compactifai/v1": {*GENERATION, ("post", "/audio/transcriptions"), ("post", "/usage/completions")},
}
MOUNTS = list(ROUTES)
STRICT = [mount for mount in MOUNTS if mount != "/v1"]
CARD = {
    *("id", "object", "created", "owned_by", "parameters_number", "capabilities"),
    *("root", "parent", "max_model_len", "permission"),
}
# A body for every route that names a model; the model is added.
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/completions": {"prompt": "hi", "max_tokens": 1},
    "/embeddings": {"input": "hi"},
    "/rerank": {"query": "hi", "documents": ["a", "b"]},
}
MODELS = {"/chat/completions": CHAT, "/completions": CHAT, "/embeddings": EMBEDDING, "/rerank": RERANK}
NAMED = [
    (mount, path) for mount in MOUNTS for path in BODIES if ("post", path) in ROUTES[mount]
]  # every JSON route of every mount


def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.base_url}/openapi.json").json()
    return found


def official(service: Service, mount: str) -> OpenAI:
    return OpenAI(base_url=service.base_url + mount, api_key=service.key, max_retries=0, timeout=120)


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_mount_has_the_routes_of_its_api_and_no_others(service: Service, mount: str) -> None:
    found = {
        (method, path.removeprefix(mount))
        for path, operations in document(service)["paths"].items()
        for method in operations
        if path.startswith(mount + "/")
    }

    # The union has those of OpenGateLLM too: test_opengatellm_mount.py.
    assert found >= ROUTES[mount] if mount == "/v1" else found == ROUTES[mount]


def test_the_document_names_every_operation_once_and_describes_the_bodies_of_all_mounts(
    service: Service,
) -> None:
    paths = document(service)["paths"]
    names = Counter(operation["operationId"] for item in paths.values() for operation in item.values())

    assert max(names.values()) == 1
    for mount, path in NAMED:
        assert paths[mount + path]["post"]["requestBody"] == paths["/v1" + path]["post"]["requestBody"]


@pytest.mark.parametrize("mount", MOUNTS)
def test_the_official_client_works_on_every_mount(service: Service, mount: str) -> None:
    client = official(service, mount)

    assert client.models.list().data[0].id == CHAT
    assert client.models.retrieve(SPEECH).id == SPEECH
    chat = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
    )
    assert chat.choices[0].message.content is not None
    assert client.completions.create(model=CHAT, prompt="one two three", max_tokens=2).choices[0].text
    if ("post", "/embeddings") in ROUTES[mount]:
        assert len(client.embeddings.create(model=EMBEDDING, input="x").data[0].embedding) == 384
    if ("post", "/audio/transcriptions") in ROUTES[mount]:
        with jfk_wav().open("rb") as file:
            assert "country" in client.audio.transcriptions.create(model=SPEECH, file=file).text


@pytest.mark.parametrize(("mount", "path"), NAMED)
def test_an_unknown_model_is_answered_in_the_words_of_the_api(
    service: Service, mount: str, path: str
) -> None:
    with service.http as http:
        response = http.post(mount + path, json={**BODIES[path], "model": "nope{0}"})
    error = response.json()["error"]

    assert error["code"] == "model_not_found"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "model"
    if mount == "/compactifai/v1":
        available = ", ".join(sorted([CHAT, EMBEDDING, RERANK, SPEECH]))
        assert response.status_code == response.json()["code"] == 400
        assert error["message"] == f"Invalid request: Model 'nope{{0}}' not found; available: [{available}]"
        assert response.json()["type"] == "BadRequestError"
    else:
        assert response.status_code == response.json()["code"] == 404
        assert error["message"] == response.json()["detail"] == "The model `nope{0}` does not exist."
        assert response.json()["type"] == "NotFoundError"


@pytest.mark.parametrize(("mount", "status"), [("/v1", 404), ("/compactifai/v1", 400)])
def test_an_unknown_model_in_a_form_is_answered_alike(service: Service, mount: str, status: int) -> None:
    with service.http as http:
        response = http.post(
            f"{mount}/audio/transcriptions",
            data={"model": "m" * 10_000},
            files={"file": ("a.wav", jfk_wav().read_bytes())},
        )

    assert response.status_code == status
    assert response.json()["error"]["code"] == "model_not_found"
    assert len(response.content) < 3000
    assert (CHAT in response.json()["message"]) == (status == 400)


@pytest.mark.parametrize("mount", MOUNTS)
def test_asking_for_an_unknown_model_itself_is_404_everywhere(service: Service, mount: str) -> None:
    with service.http as http:
        response = http.get(f"{mount}/models/org/nope")

    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["detail"] == "The model `org/nope` does not exist."
    with pytest.raises(openai.NotFoundError):
        official(service, mount).models.retrieve("nope")


@pytest.mark.parametrize("mount", STRICT)
def test_cards_of_strict_mounts_have_the_keys_of_their_api(service: Service, mount: str) -> None:
    with service.http as http:
        cards = http.get(f"{mount}/models").json()["data"]
        union = {card["id"]: card for card in http.get("/v1/models").json()["data"]}

    assert {card["id"] for card in cards} == set(union)
    for card in cards:
        assert set(card) == CARD
        assert card.items() <= union[card["id"]].items()


@pytest.mark.parametrize(("mount", "path"), NAMED)
def test_unknown_fields_and_nulls_are_ignored(service: Service, mount: str, path: str) -> None:
    extra = {"store": True, "metadata": {"a": 1}, "service_tier": "auto", "user": None, "top_n": None}
    with service.http as http:
        response = http.post(mount + path, json={**BODIES[path], **extra, "model": MODELS[path]})

    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("mount", "path"), NAMED)
@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
def test_what_is_no_json_object_is_refused(service: Service, mount: str, path: str, body: bytes) -> None:
    with service.http as http:
        response = http.post(mount + path, content=body, headers={"x-request-id": "mine"})

    assert response.status_code == (422 if path == "/rerank" and body in (b"[]", b"null") else 400)
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["object"] == "error"


@pytest.mark.parametrize("mount", MOUNTS)
def test_the_errors_of_every_mount_have_both_envelopes(service: Service, mount: str) -> None:
    with service.http as http:
        unknown = http.post(f"{mount}/nowhere")
        method = http.delete(f"{mount}/models")
        bad_key = http.get(f"{mount}/models", headers={"Authorization": "Bearer wrong"})
        wrong_task = http.post(
            f"{mount}/chat/completions", json={**BODIES["/chat/completions"], "model": EMBEDDING}
        )
    expected = [
        (unknown, 404, "not_found_error", None, "NotFoundError"),
        (method, 405, "invalid_request_error", None, "MethodNotAllowed"),
        (bad_key, 401, "authentication_error", "invalid_api_key", "AuthenticationError"),
        (wrong_task, 400, "invalid_request_error", None, "BadRequestError"),
    ]
    for response, status, kind, code, flat in expected:
        body = response.json()
        assert response.status_code == body["code"] == status
        assert (body["error"]["type"], body["error"]["code"], body["type"]) == (kind, code, flat)
        assert body["message"] == body["error"]["message"]
        assert ("detail" in body) == (status in (401, 404))
        assert response.headers["x-request-id"]
    assert "does not support chat completions" in wrong_task.json()["message"]
    assert method.headers["allow"]


@pytest.mark.parametrize("path", ["/tokenizer_info", "/gpu_info"])
def test_compressas_platform_has_the_servers_own_routes(service: Service, path: str) -> None:
    with service.http as http:
        assert http.get(f"/compressa{path}").json() == http.get(path).json()
        assert http.get(f"/compactifai{path}").status_code == 404
    assert httpx.get(f"{service.base_url}/compressa{path}").status_code == 401


def test_the_hardware_is_named_truthfully(service: Service) -> None:
    with service.http as http:
        answers = [http.get(path).json() for path in ("/gpu_info", "/v1/gpu_info", "/compressa/v1/gpu_info")]

    assert answers[0] == answers[1] == answers[2]
    assert set(answers[0]) == {"DRIVER VERSION", "CUDA VERSION", "HARDWARE"}
    assert answers[0]["DRIVER VERSION"] == answers[0]["CUDA VERSION"] == "none"
    assert answers[0]["HARDWARE"] in Path("/proc/cpuinfo").read_text()
