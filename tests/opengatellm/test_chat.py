"""Chats through the gateway: what goes to the model server, what comes back, and what is recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.upstream.fake import (
    MODEL,
    Exchange,
    FakeUpstream,
    Script,
    chat_answer,
    fake_upstream,
    streaming,
)
from tests.opengatellm.gate import Client, body_of, limits, refusal, soon, unique, user_of, wrong_fields
from tests.service import CHAT, EMBEDDING

QUESTION: list[Any] = [{"role": "user", "content": "Count to three."}]
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "cost", "carbon", "requests"}


def routed(master: Client, *servers: FakeUpstream, **fields: Any) -> tuple[Client, str]:
    """Put servers behind a new router; return a user that may use it, and its name."""
    name = unique("chat")
    router = master.make("/admin/routers", name=name, type="text-generation", **fields)["id"]
    for server in servers:
        body = {"router": router, "type": "vllm", "url": server.base_url, "model_name": MODEL, "timeout": 5}
        master.make("/admin/providers", **body, model_total_params=8, model_active_params=8)
    return user_of(master, role_limits=limits(router)), name


def ask(client: Client, model: str, **fields: Any) -> Any:
    """Ask a model to chat."""
    return client.post("/chat/completions", {"model": model, "messages": QUESTION, **fields})


def events(answer: Any) -> list[dict[str, Any]]:
    """Return the chunks of a stream; each line that is not empty is data."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def failing(status: int, body: Any) -> Script:
    """Return a script that answers with an error."""

    def script(exchange: Exchange) -> None:
        exchange.answer(body, status)

    return script


def test_every_declared_field_goes_upstream_with_its_default(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream)
    assert ask(user, name, ignore_eos=True, max_tokens=7, strange={"a": [1.5]}).status_code == 200

    sent = upstream.posted[-1].json
    assert sent["model"] == MODEL
    assert (sent["temperature"], sent["tool_choice"], sent["top_p"], sent["n"]) == (0.7, "none", 1, 1)
    assert (sent["ignore_eos"], sent["max_tokens"], sent["strange"]) == (True, 7, {"a": [1.5]})
    assert sent["messages"] == QUESTION


def test_an_answer_has_the_name_asked_for_and_the_gateways_usage(
    master: Client, upstream: FakeUpstream
) -> None:
    alias = unique("alias")
    user, _ = routed(master, upstream, aliases=[alias], cost_prompt_tokens=1000, cost_completion_tokens=2000)
    answer = body_of(ask(user, alias))

    assert (answer["model"], answer["id"]) == (alias, "up-1")
    usage = answer["usage"]
    assert set(usage) == USAGE
    assert usage["requests"] == 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    cost = usage["prompt_tokens"] * 0.001 + usage["completion_tokens"] * 0.002
    assert usage["cost"] == pytest.approx(cost, abs=1e-6)
    for unit in ("kWh", "kgCO2eq"):
        assert 0 < usage["carbon"][unit]["min"] <= usage["carbon"][unit]["max"]


def test_a_stream_ends_with_the_usage_in_the_providers_name(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream, cost_completion_tokens=1)
    *chunks, last = events(ask(user, name, stream=True))

    texts = [choice["delta"].get("content") or "" for each in chunks for choice in each["choices"]]
    assert "".join(texts) == "one two three"
    assert (last["choices"], last["model"], last["id"]) == ([], MODEL, "up-1")
    assert set(last["usage"]) == USAGE


def test_an_error_of_the_server_keeps_status_and_message(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream)
    upstream.script = failing(400, {"object": "error", "message": "no such colour"})
    assert refusal(ask(user, name, colour=10), 400) == "no such colour"
    assert refusal(ask(user, name, colour=10, stream=True), 400) == "no such colour"

    upstream.script = failing(400, {"reason": "another"})
    detail = refusal(ask(user, name), 400)
    assert "another" in str(detail)


def test_a_server_that_is_gone_is_503(master: Client) -> None:
    with fake_upstream(streaming()) as server:
        user, name = routed(master, server)

    for stream in (False, True):
        answer = ask(user, name, stream=stream)
        assert refusal(answer, 503) == "Model is temporarily unavailable, please try again later."
        assert answer.headers["Retry-After"] == "10"


def test_a_server_that_breaks_off_is_503(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream)
    upstream.script = lambda exchange: exchange.hang_up()

    answer = ask(user, name)
    detail = refusal(answer, 503)
    assert detail.startswith("Model is too busy (")
    assert detail.endswith("), please try again later")
    assert answer.headers["Retry-After"] == "10"


def test_the_next_server_answers_for_one_that_is_gone(master: Client, upstream: FakeUpstream) -> None:
    with fake_upstream(streaming()) as gone:
        user, name = routed(master, gone, upstream)

    for number in range(6):
        answer = ask(user, name, stream=bool(number % 2))
        assert answer.status_code == 200, answer.text


def test_a_model_of_another_type_is_422(box: Client) -> None:
    assert refusal(ask(box, EMBEDDING), 422) == "Wrong model type."
    assert refusal(box.post("/embeddings", {"model": CHAT, "input": "x"}), 422) == "Wrong model type."
    body = {"model": CHAT, "query": "x", "documents": ["x"]}
    assert refusal(box.post("/rerank", body), 422) == "Wrong model type."


def test_wrong_fields_of_a_chat_are_named(box: Client) -> None:
    assert wrong_fields(box.post("/chat/completions", {"model": CHAT})) == [
        (["body", "messages"], "Field required")
    ]
    text = "Value error, search_args is required when search is True"
    assert [words for _, words in wrong_fields(ask(box, CHAT, search=True))] == [text]
    (wrong,) = wrong_fields(ask(box, CHAT, search=True, search_args={"limit": 1000}))
    assert wrong[1] == "Input should be less than or equal to 100"


def test_search_without_a_store_is_403(box: Client) -> None:
    text = "Search tool is not enabled because Elasticsearch is not configured."
    assert refusal(ask(box, CHAT, tools=[{"type": "search", "k": 3}]), 403) == text


def test_the_box_refuses_what_a_model_server_would(box: Client) -> None:
    assert "ignore_eos" in str(refusal(ask(box, CHAT, ignore_eos=10), 400))


# -- budget and usage


def test_a_budget_is_spent_and_then_refused(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream, cost_prompt_tokens=1000, cost_completion_tokens=1000)
    master.change(f"/admin/users/{user.user}", budget=100)
    cost = body_of(ask(user, name))["usage"]["cost"]
    assert cost > 0

    def spent() -> bool | None:
        return user.read("/me/info")["budget"] == round(100 - cost, 6) or None

    assert soon(spent, 1)
    master.change(f"/admin/users/{user.user}", budget=0)
    refused = len(upstream.posted)
    assert ask(user, name).text == '{"detail":"Insufficient budget."}'
    assert refusal(ask(user, name, stream=True), 400) == "Insufficient budget."
    assert len(upstream.posted) == refused
    master.change(f"/admin/users/{user.user}", budget=None)
    assert ask(user, name).status_code == 200


def test_a_free_model_is_answered_without_a_budget(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream)
    master.change(f"/admin/users/{user.user}", budget=0)

    assert ask(user, name).status_code == 200
    assert user.read("/me/info")["budget"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_usage_record_is_there_within_two_seconds(
    master: Client, upstream: FakeUpstream, stream: bool
) -> None:
    user, name = routed(master, upstream, cost_prompt_tokens=1000)
    answer = ask(user, name, stream=stream)
    usage = events(answer)[-1]["usage"] if stream else body_of(answer)["usage"]

    def records() -> list[dict[str, Any]] | None:
        return user.read("/me/usage")["data"] or None

    (record,) = soon(records)
    metrics = record["usage"].pop("metrics")
    assert metrics["latency"] >= 0
    assert (metrics["ttft"] is not None) == stream
    assert record.pop("created") > 0
    requests = usage.pop("requests")
    assert requests == 1
    assert record == {
        "object": "me.usage",
        "model": name,
        "key": "token",
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "status": 200,
        "usage": usage,
    }
    assert user.read("/me/usage", endpoint="/v1/chat/completions")["data"] != []
    assert user.read("/me/usage", endpoint="/v1/embeddings")["data"] == []
    assert user.read("/me/usage", end_time=1)["data"] == []


def test_usage_shows_successes_of_ones_own_alone(master: Client, upstream: FakeUpstream) -> None:
    user, name = routed(master, upstream)
    upstream.script = failing(400, {"message": "no"})
    ask(user, name)
    ask(user, "none")
    upstream.script = failing(200, chat_answer())
    assert ask(master, name).status_code == 200
    assert ask(user, name).status_code == 200

    assert [each["status"] for each in user.read("/me/usage")["data"]] == [200]
    assert master.read("/me/usage")["data"] == []


@pytest.mark.parametrize(
    "query", [{"endpoint": "/v1/completions"}, {"start_time": "yesterday"}, {"limit": 101}, {"offset": -1}]
)
def test_wrong_questions_about_usage_are_422(nobody: Client, query: dict[str, Any]) -> None:
    ((place, _),) = wrong_fields(nobody.get("/me/usage", **query))

    assert place == ["query", *query]
