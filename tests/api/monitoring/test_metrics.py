"""GET /metrics and its like on OpenGateLLM's mount: what is counted, for whom, under which names."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import generate_latest

from appliance.api.monitoring.http import Exchange
from appliance.api.monitoring.metrics import Metrics
from appliance.gateway.errors import InsufficientBudgetError, LimitExceededError, ModelNotFoundError
from appliance.gateway.usage.record import UsageRecord
from tests.api.monitoring.reading import Series, scraped
from tests.gateway.usage.store import record
from tests.people import limits, make_person, make_role, router_id
from tests.service import CHAT, EMBEDDING, Service

CALL = record(
    0,
    model="chat",
    provider_id=3,
    latency_ms=2000,
    ttft_ms=120,
    completion_tokens=30,
    cost=2_500_000,
)


def rendered(metrics: Metrics) -> Series:
    return Series(bytes(asyncio.run(metrics.render()).content).decode())


def opengatellm(metrics: Metrics) -> Series:
    return Series(generate_latest(metrics.opengatellm_registry).decode())


def changed(call: UsageRecord, **fields: Any) -> UsageRecord:
    return msgspec.structs.replace(call, **fields)


def test_a_call_is_counted_by_router_and_provider() -> None:
    metrics = Metrics()
    metrics.called(CALL)
    metrics.called(changed(CALL, status=503, ttft_ms=None, prompt_tokens=0, completion_tokens=0, cost=0))
    found = rendered(metrics)

    of = {"router": "chat", "provider": "3"}
    assert found.value("appliance_calls_total", status="200", endpoint="/v1/chat/completions", **of) == 1
    assert found.value("appliance_calls_total", status="503", **of) == 1
    assert found.value("appliance_call_seconds_count", **of) == 1  # those that succeeded
    assert found.value("appliance_call_seconds_sum", **of) == 2
    assert found.value("appliance_call_seconds_bucket", le="1.0", **of) == 0
    assert found.value("appliance_call_seconds_bucket", le="2.5", **of) == 1
    assert found.value("appliance_call_ttft_seconds_sum", **of) == 0.12
    assert found.value("appliance_tokens_total", type="prompt", **of) == 10
    assert found.value("appliance_tokens_total", type="completion", **of) == 30
    assert found.value("appliance_cost_total", **of) == 2.5


def test_the_same_call_under_the_names_of_opengatellm() -> None:
    metrics = Metrics()
    metrics.called(CALL)
    found = opengatellm(metrics)

    of = {"endpoint": "/v1/chat/completions", "model": "chat"}
    assert found.value("ogl_inference_requests_total", status_code="200", **of) == 1
    assert found.value("ogl_inference_requests_duration_seconds_sum", status_code="200", **of) == 2
    assert found.value("ogl_inference_ttft_milliseconds_sum", status_code="200", **of) == 120
    assert found.value("ogl_inference_output_tokens_per_second_sum", **of) == 15
    assert found.value("ogl_inference_tokens_total", type="completion", **of) == 30
    for family, first, last in (
        ("ogl_inference_requests_duration_seconds", "0.05", "300.0"),
        ("ogl_inference_ttft_milliseconds", "5.0", "300000.0"),
        ("ogl_inference_output_tokens_per_second", "5.0", "1000.0"),
    ):
        buckets = [
            sample.labels["le"]
            for sample in found.families[family].samples
            if sample.name.endswith("_bucket")
        ]
        assert (buckets[0], buckets[-2], buckets[-1]) == (first, last, "+Inf")


def test_the_series_of_opengatellm_have_its_labels() -> None:
    metrics = Metrics()
    metrics.called(CALL)
    metrics.answered(exchange())
    found = opengatellm(metrics)

    inference, http = "ogl_inference_", "ogl_http_"
    expected = {
        f"{inference}requests": ("counter", {"endpoint", "model", "status_code"}),
        f"{inference}requests_duration_seconds": ("histogram", {"endpoint", "model", "status_code", "le"}),
        f"{inference}ttft_milliseconds": ("histogram", {"endpoint", "model", "status_code", "le"}),
        f"{inference}output_tokens_per_second": ("histogram", {"endpoint", "model", "le"}),
        f"{inference}tokens": ("counter", {"endpoint", "model", "type"}),
        f"{http}requests": ("counter", {"handler", "method", "status"}),
        f"{http}request_size_bytes": ("summary", {"handler"}),
        f"{http}response_size_bytes": ("summary", {"handler"}),
        f"{http}request_duration_seconds": ("histogram", {"handler", "method", "le"}),
        f"{http}request_duration_highr_seconds": ("histogram", {"le"}),
    }
    ours = {name for name in found.families if name.startswith("ogl_")}
    assert ours == set(expected)
    for name, (kind, labels) in expected.items():
        assert (found.families[name].type, found.labels(name)) == (kind, labels), name


def exchange(**fields: Any) -> Exchange:
    values = {"method": "POST", "route": "/opengatellm/v1/rerank", "status": 422, "seconds": 0.2}
    return Exchange(**{**values, "request_bytes": 10, "response_bytes": 20, **fields})


def test_http_series_name_handlers_without_the_mount_and_statuses_by_class() -> None:
    metrics = Metrics()
    metrics.answered(exchange())
    metrics.answered(exchange(route="/v1/rerank", status=400))
    metrics.answered(exchange(route="unknown", status=404))
    found = opengatellm(metrics)

    assert found.value("ogl_http_requests_total", handler="/v1/rerank", method="POST", status="4xx") == 2
    assert found.value("ogl_http_requests_total", handler="none") == 1
    assert found.value("ogl_http_request_size_bytes_sum", handler="/v1/rerank") == 20
    assert found.value("ogl_http_response_size_bytes_count", handler="/v1/rerank") == 2


def test_refusals_are_counted_by_kind() -> None:
    metrics = Metrics()
    metrics.refused(LimitExceededError("…", kind="tpd", retry_after=1))
    metrics.refused(InsufficientBudgetError())
    metrics.refused(ModelNotFoundError("x", []))
    metrics.answered(exchange(route="/v1/auth/login", status=401))
    metrics.answered(exchange(route="/v1/auth/login", status=200))
    found = rendered(metrics)

    assert found.value("appliance_limits_hit_total", type="tpd") == 1
    assert found.value("appliance_limits_hit_total") == 1
    assert found.value("appliance_budget_refusals_total") == 1
    assert found.value("appliance_logins_failed_total") == 1


@pytest.mark.parametrize("path", ["/metrics", "/opengatellm/metrics"])
def test_metrics_need_their_permission_and_it_suffices(bare_service: Service, path: str) -> None:
    reader = make_person(bare_service, make_role(bare_service, permissions=["read_metric"]))
    with make_person(bare_service).http as http:
        refused = http.get(path)
    with reader.http as http:
        scraped(http, path)
        assert http.get("/v1/admin/audit").status_code == 403

    assert refused.status_code == 403
    assert refused.json()["detail"] == "Insufficient rights."
    missing = httpx.get(bare_service.base_url + path, trust_env=False)
    assert missing.status_code == 401


def test_opengatellms_health_is_open_and_says_no_more_than_hers(bare_service: Service) -> None:
    answer = httpx.get(f"{bare_service.base_url}/opengatellm/health", trust_env=False)

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


def test_the_box_tells_its_store_disk_and_connections(bare_service: Service) -> None:
    with bare_service.http as http:
        http.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
        before = scraped(http)
        for _ in range(3):
            http.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
        found = scraped(http)

    assert found.value("appliance_store_bytes") >= 4096
    assert found.value("appliance_disk_total_bytes") > found.value("appliance_disk_free_bytes") > 0
    assert found.value("appliance_audit_lines") >= 1
    assert found.value("appliance_connections", state="running") >= 1
    refused = "appliance_refused_keys_total"
    assert found.value(refused) - before.value(refused) == 3
    assert found.value("process_resident_memory_bytes") > 1 << 20
    for name in ("appliance_store_pending_writes", "appliance_usage_records_pending"):
        assert name in found.families


def test_no_stranger_can_make_series(bare_service: Service) -> None:
    with bare_service.http as http:
        http.post("/v1/chat/completions", json={"model": "warm"})
        scraped(http, "/opengatellm/metrics")
        before = {path: scraped(http, path) for path in ("/metrics", "/opengatellm/metrics")}
        for number in range(30):
            http.post("/v1/chat/completions", json={"model": f"stranger-{number}"})
            http.get(f"/stranger-{number}")
            http.get("/v1/models", headers={"Authorization": f"Bearer stranger-{number}"})
            http.get(f"/v1/models/stranger-{number}")
            http.request(["PROPFIND", "MKCOL", "TRACE"][number % 3], "/v1/models")
        after = {path: scraped(http, path) for path in before}

    for path, found in after.items():
        assert "stranger" not in found.text
        assert len(found.text.splitlines()) - len(before[path].text.splitlines()) < 150, path


def test_calls_of_models_show_with_everything_around_them(service: Service) -> None:
    role = make_role(service, limits=limits(router_id(service, EMBEDDING), rpm=1))
    person = make_person(service, role)
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
    with service.http as http, person.http as limited:
        before = scraped(http)
        assert http.post("/v1/chat/completions", json={**chat, "stream": True}).status_code == 200
        assert http.post("/v1//chat/completions/", json=chat).status_code in (200, 404)
        statuses = [
            limited.post("/v1/embeddings", json={"model": EMBEDDING, "input": "x"}).status_code
            for _ in range(2)
        ]
        found = scraped(http)
        theirs = scraped(http, "/opengatellm/metrics")

    def gained(name: str, **labels: str) -> float:
        return found.value(name, **labels) - before.value(name, **labels)

    assert statuses == [200, 429]
    calls = found.families["appliance_calls"].samples
    assert {sample.labels["endpoint"] for sample in calls} >= {"/v1/chat/completions", "/v1/embeddings"}
    assert all("//" not in sample.labels["endpoint"] for sample in calls)
    assert gained("appliance_calls_total", router=CHAT, status="200") >= 1
    assert gained("appliance_call_ttft_seconds_count", router=CHAT) == 1
    assert gained("appliance_tokens_total", router=CHAT, type="completion") >= 3
    assert gained("appliance_calls_total", router=EMBEDDING) == 1
    assert gained("appliance_limits_hit_total", type="rpm") == 1
    assert found.value("appliance_provider_info", router=CHAT, type="local", model=CHAT) == 1
    assert found.value("appliance_provider_healthy", router=CHAT) == 1
    assert found.value("appliance_provider_in_flight") == 0
    assert found.value("appliance_router_waiting", router=CHAT) == 0
    assert found.value("appliance_model_ready", model=CHAT) == 1
    assert theirs.value("ogl_inference_tokens_total", model=CHAT, type="completion") >= 3
