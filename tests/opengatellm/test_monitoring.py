"""Health and metrics, above the API's ``/v1``."""

from __future__ import annotations

import httpx

from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.opengatellm.gate import HTTP, ROOT, Client, refusal, unique, user_of


def look(client: Client, path: str, key: str | None = None) -> httpx.Response:
    """Read a path above ``/v1``."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return HTTP.get(f"{client.service.base_url}{ROOT}{path}", headers=headers)


def test_health_needs_no_key_and_says_only_that(master: Client) -> None:
    answer = look(master, "/health")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_metrics_need_their_permission(master: Client, nobody: Client) -> None:
    reader = user_of(master, permissions=["read_metric"])
    manager = user_of(master, permissions=["admin"])

    assert look(master, "/metrics").status_code == 401
    for user in (nobody, manager):
        assert refusal(look(user, "/metrics", user.key), 403) == "Insufficient rights."
    answer = look(reader, "/metrics", reader.key)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


def test_what_models_did_is_counted(master: Client, upstream: FakeUpstream) -> None:
    name = unique("counted")
    router = master.make("/admin/routers", name=name, type="text-generation")["id"]
    body = {"router": router, "type": "vllm", "url": upstream.base_url, "model_name": MODEL}
    master.make("/admin/providers", **body)
    question = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    assert master.post("/chat/completions", question).status_code == 200
    assert master.post("/chat/completions", {**question, "stream": True}).status_code == 200

    lines = look(master, "/metrics", master.key).text.splitlines()
    mine = [line for line in lines if f'model="{name}"' in line]
    for series in (
        "ogl_inference_requests_total",
        "ogl_inference_requests_duration_seconds_count",
        "ogl_inference_ttft_milliseconds_count",
        "ogl_inference_output_tokens_per_second_count",
        "ogl_inference_tokens_total",
    ):
        found = [line for line in mine if line.startswith(series + "{")]
        assert found, series
        assert all('endpoint="/v1/chat/completions"' in line for line in found)
    (requests,) = [line for line in mine if line.startswith("ogl_inference_requests_total{")]
    assert 'status_code="200"' in requests
    assert float(requests.rpartition(" ")[2]) == 2
    for series in (
        "ogl_http_requests_total{",
        "ogl_http_request_size_bytes_count{",
        "ogl_http_response_size_bytes_count{",
        "ogl_http_request_duration_seconds_bucket{",
        "ogl_http_request_duration_highr_seconds_bucket{",
        "process_cpu_seconds_total",
    ):
        assert any(line.startswith(series) for line in lines), series
