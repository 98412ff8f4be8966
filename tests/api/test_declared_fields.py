"""On OpenGateLLM's mount the gateway checks what that API declares; the rest is for the server behind it to judge."""

from __future__ import annotations

from typing import Any

from tests.api.test_forwarding import vectors
from tests.api.upstreams import routed
from tests.gateway.upstream.fake import FakeUpstream
from tests.service import Service


def test_what_opengatellm_does_not_declare_is_the_upstreams_to_judge(
    box: Service, upstream: FakeUpstream
) -> None:
    model = routed(box, upstream)
    strange: dict[str, Any] = {
        "messages": [5, {"role": ["x"], "content": {"new": "form"}}],
        "response_format": "text",
        "reasoning_effort": {"level": 3},
        "ignore_eos": 10,
        "echo": "no",
    }
    with box.http as http:
        answer = http.post("/opengatellm/v1/chat/completions", json={"model": model, **strange})
        assert answer.status_code == 200, answer.text
        sent = upstream.posted[-1].json
        assert {name: sent[name] for name in strange} == strange
        for field, value, status in (("max_tokens", "x", 400), ("stream_options", 5, 400), ("user", 5, 422)):
            body = {"model": model, "messages": [], "stream": True, field: value}
            answer = http.post("/opengatellm/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text
        body = {"model": model, "messages": [], "stop": ["a"] * 5}
        answer = http.post("/opengatellm/v1/chat/completions", json=body)
        assert [wrong["loc"] for wrong in answer.json()["detail"]] == [["body", "stop"]]


def test_an_embedding_field_of_another_type_goes_to_the_upstream(
    box: Service, upstream: FakeUpstream
) -> None:
    upstream.script = vectors
    name = routed(box, upstream, kind="text-embeddings-inference")
    with box.http as http:
        body = {"model": name, "input": "a", "truncate_prompt_tokens": "end"}
        answer = http.post("/opengatellm/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    assert upstream.posted[-1].json["truncate_prompt_tokens"] == "end"
