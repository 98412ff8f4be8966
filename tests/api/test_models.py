"""The model list, health, metrics, documentation."""

from __future__ import annotations

import re
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from appliance import __version__
from appliance.api.openai.models import parameters_number
from tests.people import limits, make_person, make_role, router_id
from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service


def test_the_list_has_every_served_model_and_only_those(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == sorted([CHAT, EMBEDDING, RERANK, SPEECH])


def test_a_card_has_the_fields_of_every_api(service: Service) -> None:
    with service.http as http:
        cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
        assert http.get(f"/v1/models/{CHAT}").json() == cards[CHAT]
    card = cards[CHAT]

    assert card["object"] == "model"
    assert card["type"] == "text-generation"
    assert card["max_model_len"] == card["max_context_length"] == 8192
    assert card["parameters_number"] == "135M"
    assert card["root"] == CHAT
    assert card["permission"][0]["object"] == "model_permission"
    assert cards[SPEECH]["capabilities"]["supports_audio"] is True
    assert not any(other["capabilities"]["supports_image"] for other in cards.values())


def test_a_model_that_the_role_may_not_use_is_listed_only_where_it_is_told_from_an_unknown_one(
    service: Service,
) -> None:
    some, all_four = limits(router_id(service, CHAT))[1:], limits(router_id(service, EMBEDDING))
    person = make_person(service, make_role(service, limits=[*some, *all_four]))
    with person.http as http:
        for mount, listed in (
            ("/v1", [EMBEDDING]),
            ("/compressa/v1", [EMBEDDING]),
            ("/opengatellm/v1", [EMBEDDING, CHAT]),
        ):
            cards = http.get(f"{mount}/models").json()["data"]
            assert {card["id"] for card in cards} == set(listed)
            assert http.get(f"{mount}/models/{CHAT}").status_code == (200 if CHAT in listed else 404)


def test_what_a_card_promises_is_what_the_routes_do(service: Service) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with service.http as http:

        def taken(model: str, **fields: Any) -> bool:
            response = http.post("/v1/chat/completions", json={"model": model, **chat, **fields})
            assert response.status_code in (200, 400), response.text
            return response.status_code == 200

        for card in http.get("/v1/models").json()["data"]:
            model, able = card["id"], card["capabilities"]
            assert taken(model) == able["support_chat_completion"] == (model == CHAT)
            assert taken(model, tools=[tool], tool_choice="auto") == able["supports_function_calling"]
            assert taken(model, messages=[{"role": "user", "content": picture}]) == able["supports_image"]
            heard = http.post(
                "/v1/audio/transcriptions",
                data={"model": model},
                files={"file": ("a.wav", jfk_wav().read_bytes())},
            )
            assert (heard.status_code == 200) == able["supports_audio"] == (model == SPEECH)
            if not able["supports_audio"]:
                assert f"The model `{model}` does not support transcription." in heard.json()["message"]


def test_an_unknown_model_is_404_also_with_a_slash(client: OpenAI, service: Service) -> None:
    for name in ("nope", "org/nope", "org%2Fnope"):
        with service.http as http:
            response = http.get(f"/v1/models/{name}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["type"] == "not_found_error"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_the_fingerprint_is_of_this_build_and_pack(client: OpenAI) -> None:
    def fingerprint() -> str | None:
        return client.completions.create(model=CHAT, prompt="a", max_tokens=1).system_fingerprint

    assert fingerprint() == fingerprint()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (134_515_008, "135M"),
        (8_030_000_000, "8.03B"),
        (51_800_000_000, "51.8B"),
        (108_000_000_000, "108B"),
        (7, "7"),
    ],
)
def test_parameter_counts_read_as_on_the_cards(count: int, text: str) -> None:
    assert parameters_number(count) == text


def test_health_version_and_readiness(service: Service) -> None:
    assert httpx.get(f"{service.base_url}/health").json()["status"] == "ok"
    assert httpx.get(f"{service.base_url}/version").json() == {"version": __version__}
    ready = httpx.get(f"{service.base_url}/health/ready").json()
    assert ready["status"] == "ready"
    assert (ready["ready"], ready["loading"], ready["failed"]) == (4, 0, 0)


def test_metrics_count_by_route_template(service: Service) -> None:
    with service.http as http:
        http.get("/v1/models/some-name-nobody-has")
        text = http.get("/metrics").text

    assert re.search(
        r'appliance_requests_total\{method="GET",route="/v1/models/\{model_id\}",status="404"\}', text
    )
    assert "some-name-nobody-has" not in text
    assert f'appliance_model_ready{{model="{CHAT}"}} 1.0' in text
    assert f'appliance_build_info{{version="{__version__}"}} 1.0' in text


def test_every_answer_has_a_request_id_and_a_clients_own_comes_back(service: Service) -> None:
    assert httpx.get(f"{service.base_url}/health").headers["x-request-id"]
    mine = httpx.get(f"{service.base_url}/nowhere", headers={"x-request-id": "my-id"})
    assert mine.headers["x-request-id"] == "my-id"
    assert mine.status_code == 404
    forged = httpx.get(f"{service.base_url}/health", headers={"x-request-id": "a" * 500})
    assert len(forged.headers["x-request-id"]) == 32


def test_the_documentation_page_loads_nothing_from_elsewhere(service: Service) -> None:
    page = httpx.get(f"{service.base_url}/docs")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert len(assets) >= 3
    for asset in assets:
        assert asset.startswith("/docs/")
        assert httpx.get(service.base_url + asset).status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    folder = next(asset for asset in assets if asset.endswith(".css")).rsplit("/", 1)[0]
    assert httpx.get(f"{service.base_url}{folder}/..%2f..%2fsecret.key").status_code == 404


def test_the_openapi_document_describes_every_body(service: Service) -> None:
    document = httpx.get(f"{service.base_url}/openapi.json").json()

    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        assert "properties" in document["components"]["schemas"][name]
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    assert "multipart/form-data" in form


def test_wrong_method_and_unknown_route_have_the_error_shape(service: Service) -> None:
    with service.http as http:
        for response, status in ((http.get("/v1/embeddings"), 405), (http.post("/v1/nowhere"), 404)):
            assert response.status_code == status
            assert response.json()["error"]["message"]
