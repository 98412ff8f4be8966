"""/v1/admin/providers: what is asked of a server first, what is refused, and that keys never come back."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import CHAT, EMBEDDING, RERANK, Service, running_service

UPSTREAM_KEY = "sk-upstream-secret-0123456789"
_numbers = itertools.count(1)

# Models of the upstream server: context length, dimensions.
MODELS = {"small": (2048, 8), "large": (4096, 16), "silent": (None, 8)}


class Upstream(BaseHTTPRequestHandler):
    """A model server: lists its models, embeds in their dimensions, and takes one key only."""

    def do_GET(self) -> None:
        if self.path == "/info":
            return self.answer({"model_id": "small", "max_input_length": 512})
        if self.path == "/moved/v1/models":
            return self.answer({}, 302, Location="/v1/models")
        if self.path != "/v1/models":
            return self.answer({}, 404)
        cards = [{"id": name, "max_model_len": context} for name, (context, _) in MODELS.items()]
        return self.answer({"data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"data": [{"embedding": [0.5] * MODELS[body["model"]][1]}]})

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        if self.headers.get("Authorization") not in (None, f"Bearer {UPSTREAM_KEY}"):
            status = 401
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service without models that may reach this machine's own address."""
    data_dir = tmp_path_factory.mktemp("gateway") / "data"
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS="127.0.0.1/32,169.254.0.0/16") as service:
        yield service


def make_router(service: Service, kind: str = "text-generation") -> tuple[int, str]:
    name = f"provided-{next(_numbers)}"
    with service.http as http:
        answer = http.post("/v1/admin/routers", json={"name": name, "type": kind})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], name


def post(service: Service, mount: str = "/v1", **fields: Any) -> httpx.Response:
    body = {"type": "vllm", "model_name": "small", **fields}
    with service.http as http:
        return http.post(f"{mount}/admin/providers", json=body)


def make(service: Service, mount: str = "/v1", **fields: Any) -> dict[str, Any]:
    answer = post(service, mount, **fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def patch(service: Service, provider: int, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.patch(f"/v1/admin/providers/{provider}", json=fields)


def message(answer: httpx.Response) -> str:
    body = answer.json()
    return str(body.get("message") or body["detail"])


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
@pytest.mark.parametrize("router_field", ["router", "router_id"])
def test_a_provider_has_the_defaults_of_the_reference(
    gateway: Service, upstream: str, mount: str, router_field: str
) -> None:
    router, _ = make_router(gateway)
    made = make(gateway, mount, url=f" {upstream}/v1 ", **{router_field: router})

    assert isinstance(made["created"], int)
    assert made == {
        "id": made["id"],
        "router_id": router,
        "user_id": 1 if mount == "/v1" else 0,
        "type": "vllm",
        "url": f"{upstream}/",
        "key": None,
        "timeout": 300,
        "model_name": "small",
        "model_hosting_zone": "WOR",
        "model_total_params": 0,
        "model_active_params": 0,
        "qos_metric": None,
        "qos_limit": None,
        "created": made["created"],
        "updated": None,
    }
    with gateway.http as http:
        assert http.get(f"{mount}/admin/providers/{made['id']}").json() == {"object": "provider", **made}
        shown = http.get(f"{mount}/admin/routers/{router}").json()
    assert (shown["max_context_length"], shown["vector_size"], shown["providers"]) == (2048, None, 1)


def test_a_key_is_sent_to_its_server_and_shown_to_nobody(
    gateway: Service, upstream: str, tmp_path: Path
) -> None:
    router, _ = make_router(gateway)
    assert post(gateway, router=router, url=upstream, key="sk-wrong").status_code == 424
    made = make(gateway, router=router, url=upstream, key=f" {UPSTREAM_KEY} ")

    assert made["key"] == "********"
    with gateway.http as http:
        for path in ("", f"/{made['id']}"):
            text = http.get(f"/v1/admin/providers{path}").text
            assert UPSTREAM_KEY not in text
            assert "********" in text
        assert UPSTREAM_KEY not in http.delete(f"/v1/admin/providers/{made['id']}").text
    files = [path for path in gateway.data_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if UPSTREAM_KEY.encode() in path.read_bytes()]
    assert UPSTREAM_KEY not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"router": 999_999}, 404, "Model router 999999 not found."),
        ({"router": 1 << 80}, 404, f"Model router {1 << 80} not found."),
        ({"type": "tei"}, 400, "Invalid model provider type tei for text-generation router."),
        ({"model_name": "absent"}, 424, "Model provider absent not reachable."),
        ({"url": "{upstream}/moved"}, 424, "Model provider small not reachable."),
        ({"type": "local", "model_name": CHAT}, 424, f"Model provider {CHAT} not reachable."),
    ],
)
def test_refusals_in_the_words_of_the_reference(
    gateway: Service, upstream: str, fields: dict[str, Any], status: int, text: str
) -> None:
    router, _ = make_router(gateway)
    fields = {"router": router, "url": "{upstream}", **fields}
    fields["url"] = fields["url"].format(upstream=upstream)
    answer = post(gateway, **fields)
    assert (answer.status_code, message(answer)) == (status, text)


def test_a_server_that_does_not_answer_is_424(gateway: Service) -> None:
    router, _ = make_router(gateway)
    with socket.socket() as holder:  # nobody listens there, and nobody else can
        holder.bind(("127.0.0.1", 0))
        answer = post(gateway, router=router, url=f"http://127.0.0.1:{holder.getsockname()[1]}")
    assert (answer.status_code, message(answer)) == (424, "Model provider small not reachable.")


def test_a_router_takes_models_of_one_size_once_each(gateway: Service, upstream: str) -> None:
    router, name = make_router(gateway)
    make(gateway, router=router, url=upstream)

    again = post(gateway, router=router, url=upstream.upper().replace("HTTP", "http") + "/v1/")
    assert again.status_code == 409
    assert message(again) == f"Model provider small for url {upstream}/ already exists for router {router}."
    other = post(gateway, router=router, url=upstream, model_name="large")
    assert other.status_code == 403
    assert message(other) == f"Inconsistent max context length for {name}. Expected: 2048. Actual: 4096"
    make(gateway, router=router, url=upstream, model_name="silent")  # it does not say how long

    embedding, name = make_router(gateway, "text-embeddings-inference")
    make(gateway, router=embedding, url=upstream)
    with gateway.http as http:
        assert http.get(f"/v1/admin/routers/{embedding}").json()["vector_size"] == 8
    other = post(gateway, router=embedding, url=upstream, model_name="large")
    assert message(other) == f"Inconsistent vector size for {name}. Expected: 8. Actual: 16"
    tei = post(gateway, router=embedding, url=f"{upstream}/v1", type="tei")
    assert message(tei).endswith("Expected: 2048. Actual: 512")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "azure"),
        ("url", " "),
        ("key", " "),
        ("key", "sk\nx"),
        ("key", "schlüssel"),
        ("timeout", 0),
        ("timeout", 1 << 70),
        ("model_name", ""),
        ("model_name", "a\0b"),
        ("model_hosting_zone", "XXX"),
        ("model_total_params", -1),
        ("model_active_params", "nan"),
        ("qos_metric", "speed"),
        ("qos_limit", -1),
        ("qos_limit", "inf"),
    ],
)
def test_wrong_fields_are_422(gateway: Service, upstream: str, field: str, value: Any) -> None:
    router, _ = make_router(gateway)
    answer = post(gateway, **{"router": router, "url": upstream, field: value})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", field]


def test_missing_fields_are_422(gateway: Service, upstream: str) -> None:
    router, _ = make_router(gateway)
    assert post(gateway, url=upstream).json()["detail"][0]["loc"] == ["body", "router"]
    answer = post(gateway, router=router, url=upstream, qos_metric="ttft")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == (
        "Value error, QoS value is required if QoS metric is provided."
    )
    for kind in ("albert", "openai", "mistral", "vllm", "tei", "appliance"):
        answer = post(gateway, router=router, type=kind)
        assert answer.status_code == 422
        text = "Value error, URL is required for this model provider type."
        assert answer.json()["detail"][0]["msg"] == text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "127.0.0.1:80",
        "http://user:password@127.0.0.1/",
        "http://127.0.0.1/?x=1",
        "http://127.0.0.1/#x",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1/../admin",
        "http:///v1",
        "http://127.0.0.2/",
        "http://10.0.0.1/",
        "http://8.8.8.8/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/",
        "http://0/",
        "http://2852039166/",
        "http://0xa9.0xfe.0xa9.0xfe/",
        "http://224.0.0.1/",
        "http://no-such-host.invalid/",
        f"http://{'a' * 64}.example/",
        f"http://{'a' * 250}!/",
        "http://a..b/",
        "http://exa mple/",
        "http://127.0.0.1\\@8.8.8.8/",
        "http://ⓔxample/",
    ],
)
def test_urls_that_lead_where_providers_may_not_be_are_422(gateway: Service, url: str) -> None:
    router, _ = make_router(gateway)
    answer = post(gateway, router=router, url=url)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", "url"]


def test_private_networks_are_allowed_and_loopback_is_not_by_default(bare_service: Service) -> None:
    router, _ = make_router(bare_service)
    answer = post(bare_service, router=router, url="http://127.0.0.1:9/")
    assert answer.status_code == 422
    assert "provider_networks" in answer.json()["detail"][0]["msg"]


def test_own_types_are_none_of_opengatellms(gateway: Service, upstream: str) -> None:
    router, _ = make_router(gateway)
    answer = post(gateway, "/opengatellm/v1", router=router, url=upstream, type="appliance")
    assert answer.status_code == 422
    made = make(gateway, router=router, url=upstream, type="appliance", model_total_params=1.7)
    assert (made["type"], made["model_total_params"]) == ("appliance", 1.7)
    with gateway.http as http:
        shown = http.get(f"/opengatellm/v1/admin/providers/{made['id']}").json()
    assert (shown["type"], shown["model_total_params"]) == ("albert", 2)


def test_the_list_is_paged_filtered_and_ordered(gateway: Service, upstream: str) -> None:
    router, _ = make_router(gateway)
    ids = [
        make(gateway, router=router, url=f"{upstream}/", model_name=name)["id"]
        for name in ("small", "silent")
    ]
    with gateway.http as http:

        def listed(**query: Any) -> list[int]:
            answer = http.get("/v1/admin/providers", params=query)
            assert answer.status_code == 200, answer.text
            assert answer.json()["object"] == "list"
            return [each["id"] for each in answer.json()["data"]]

        assert listed(router=router) == listed(router_id=router) == ids
        assert listed(router=router, order_by="model_name") == ids[::-1]
        assert listed(router=router, order_direction="desc", limit=1) == ids[1:]
        assert listed(router=router, offset=5) == []
        assert set(ids) <= set(listed(limit=100))
        assert http.get("/v1/admin/providers?order_by=name").status_code == 422
        assert http.get("/v1/admin/providers?router=x").status_code == 422


def test_a_change_keeps_what_it_does_not_name(gateway: Service, upstream: str) -> None:
    router, _ = make_router(gateway)
    made = make(gateway, router=router, url=upstream, qos_metric="ttft", qos_limit=5)

    assert patch(gateway, made["id"], qos_metric="inflight").status_code == 422
    answer = patch(
        gateway,
        made["id"],
        qos_metric="inflight",
        qos_limit=3,
        timeout=10.0,
        model_hosting_zone="FRA",
        model_total_params=8,
        model_active_params=2,
        url="http://8.8.8.8/",
    )
    assert (answer.status_code, answer.content) == (204, b"")
    with gateway.http as http:
        shown = http.get(f"/v1/admin/providers/{made['id']}").json()
    assert shown == {
        **made,
        "object": "provider",
        "qos_metric": "inflight",
        "qos_limit": 3.0,
        "timeout": 10,
        "model_hosting_zone": "FRA",
        "model_total_params": 8,
        "model_active_params": 2,
        "updated": shown["updated"],
    }
    assert isinstance(shown["updated"], int)


def test_a_provider_moves_to_routers_it_fits(gateway: Service, upstream: str) -> None:
    first, _ = make_router(gateway)
    second, _ = make_router(gateway)
    large, _ = make_router(gateway)
    embedding, _ = make_router(gateway, "text-embeddings-inference")
    ocr, _ = make_router(gateway, "image-to-text")
    provider = make(gateway, router=first, url=upstream)["id"]
    make(gateway, router=large, url=upstream, model_name="large")
    make(gateway, router=embedding, url=upstream, model_name="silent")

    def refused(**fields: Any) -> tuple[int, str]:
        answer = patch(gateway, provider, **fields)
        return answer.status_code, message(answer)

    assert refused(router=999_999) == (404, "Model router not found.")
    assert refused(router=ocr) == (400, "New router type is not compatible with the provider type.")
    assert refused(router_id=large) == (403, "Inconsistent model max context length.")
    make(gateway, router=second, url=upstream)
    assert refused(router=second) == (409, "provider already exists for the new router.")
    assert patch(gateway, provider, router=embedding).status_code == 204
    with gateway.http as http:
        assert http.get(f"/v1/admin/providers/{provider}").json()["router_id"] == embedding
        assert http.get(f"/v1/admin/routers/{first}").json()["providers"] == 0


def test_an_unknown_provider_is_404(gateway: Service) -> None:
    for number in (0, 999_999, 1 << 70):
        with gateway.http as http:
            answers = [
                http.get(f"/v1/admin/providers/{number}"),
                http.patch(f"/v1/admin/providers/{number}", json={"timeout": 5}),
                http.delete(f"/v1/admin/providers/{number}"),
            ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert [message(answer) for answer in answers] == [
            "Model provider not found.",
            "Model provider not found.",
            f"Model provider {number} not found.",
        ]


def test_a_deleted_provider_is_returned_and_a_router_without_any_is_hidden(
    gateway: Service, upstream: str
) -> None:
    router, name = make_router(gateway)
    made = make(gateway, router=router, url=upstream)
    with gateway.http as http:
        assert name in [each["id"] for each in http.get("/v1/models").json()["data"]]
        answer = http.delete(f"/v1/admin/providers/{made['id']}")
        assert (answer.status_code, answer.json()) == (200, {"object": "provider", **made})
        assert http.get(f"/v1/models/{name}").status_code == 404


def test_packs_are_providers_of_type_local(service: Service) -> None:
    kinds = {CHAT: "vllm", EMBEDDING: "tei", RERANK: "tei"}
    with service.http as http:
        for mount in ("/v1", "/opengatellm/v1"):
            shown = http.get(f"{mount}/admin/providers", params={"limit": 100}).json()["data"]
            for pack, kind in kinds.items():
                provider = next(each for each in shown if each["model_name"] == pack)
                assert provider["type"] == ("local" if mount == "/v1" else kind)
                assert (provider["url"], provider["key"]) == (None, None)
                assert provider["user_id"] == (1 if mount == "/v1" else 0)
        routers = http.get("/v1/admin/routers", params={"limit": 100}).json()["data"]
        assert next(each for each in routers if each["name"] == EMBEDDING)["vector_size"] == 384

        router, name = make_router(service)
        wrong = post(service, router=router, type="local", model_name=EMBEDDING)
        assert message(wrong) == "Invalid model provider type local for text-generation router."
        made = make(service, router=router, type="local", model_name=CHAT, url="http://ignored/", key="x")
        assert (made["url"], made["key"]) == (None, None)
        assert made["model_total_params"] == pytest.approx(0.1345, abs=0.001)
        answer = http.post(
            "/v1/chat/completions",
            json={"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        )
        assert answer.status_code == 200, answer.text
        change = http.patch(f"/v1/admin/routers/{router}", json={"type": "image-text-to-text"})
        assert change.status_code == 400
        assert http.delete(f"/v1/admin/routers/{router}").json()["providers"] == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["inf", "vllm", "local", "http://127.0.0.1:9", "FRA", "ttft"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("router", "router_id", "type", "url", "key", "timeout", "model_name", "model_hosting_zone"),
    *("model_total_params", "model_active_params", "qos_metric", "qos_limit"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON), keep=st.booleans())
def test_any_json_is_taken_or_refused(gateway: Service, upstream: str, body: Any, keep: bool) -> None:
    router, _ = make_router(gateway)
    if keep and isinstance(body, dict):
        body = {"router": router, "type": "vllm", "model_name": "small", "url": upstream, **body}
    with gateway.http as http:
        answer = http.post("/v1/admin/providers", json=body)
        assert answer.status_code in {201, 400, 404, 409, 422, 424}, answer.text
        number = answer.json()["id"] if answer.status_code == 201 else 1
        change = http.patch(f"/v1/admin/providers/{number}", json=body)
        assert change.status_code in {204, 400, 403, 404, 409, 422}, change.text
