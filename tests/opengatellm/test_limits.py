"""Limits of roles: who sees a model, who may use it, and how often."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.opengatellm.gate import LIMIT_TYPES, Client, body_of, limits, refusal, unique, user_of
from tests.service import EMBEDDING

NOT_FOUND = '{"detail":"Model not found."}'


@pytest.fixture
def model(master: Client, upstream: FakeUpstream) -> tuple[int, str]:
    """Return id and name of a model to chat with."""
    name = unique("limited")
    router = master.make("/admin/routers", name=name, type="text-generation", aliases=[f"{name}-alias"])["id"]
    body = {"router": router, "type": "vllm", "url": upstream.base_url, "model_name": MODEL}
    master.make("/admin/providers", **body)
    return router, name


def ask(client: Client, model: str, words: str = "x") -> httpx.Response:
    """Ask a model to chat."""
    return client.post(
        "/chat/completions", {"model": model, "messages": [{"role": "user", "content": words}]}
    )


def test_without_limits_a_model_does_not_exist(master: Client, model: tuple[int, str]) -> None:
    user = user_of(master)

    for name in (model[1], "unknown"):
        answer = ask(user, name)
        assert (answer.status_code, answer.text) == (404, NOT_FOUND)
        assert user.get(f"/models/{name}").text == NOT_FOUND
    assert user.read("/models")["data"] == []


@pytest.mark.parametrize("kind", LIMIT_TYPES)
@pytest.mark.parametrize("value", ["missing", 0])
def test_with_three_limits_it_is_seen_and_forbidden(
    master: Client, model: tuple[int, str], kind: str, value: Any
) -> None:
    given = [limit for limit in limits(model[0]) if limit["type"] != kind]
    if value == 0:
        given.append({"router": model[0], "type": kind, "value": 0})
    user = user_of(master, role_limits=given)

    assert refusal(ask(user, model[1]), 403) == "Insufficient permissions to access the model."
    assert {limit["type"] for limit in user.read("/me/info")["limits"]} == set(LIMIT_TYPES) - {kind}
    assert [card["id"] for card in user.read("/models")["data"]] == [model[1]]


def test_four_zeros_are_no_limits(master: Client, model: tuple[int, str]) -> None:
    user = user_of(master, role_limits=limits(model[0], rpm=0, rpd=0, tpm=0, tpd=0))

    assert ask(user, model[1]).text == NOT_FOUND
    assert user.read("/me/info")["limits"] == []


@pytest.mark.parametrize(("kind", "words"), [("rpm", "requests per minute"), ("rpd", "requests per day")])
def test_requests_beyond_a_limit_are_429(
    master: Client, model: tuple[int, str], kind: str, words: str
) -> None:
    user = user_of(master, role_limits=limits(model[0], **{kind: 2}))
    # By its alias, too, and by every key of the user.
    other = Client(master.service, user.make("/me/keys", name="other")["key"])

    assert ask(user, model[1]).status_code == 200
    assert ask(other, f"{model[1]}-alias").status_code == 200
    for client in (user, other):
        answer = ask(client, model[1])
        assert refusal(answer, 429) == f"2 {words} exceeded (remaining: 0)."
        assert int(answer.headers["Retry-After"]) >= 1
    assert ask(master, model[1]).status_code == 200


@pytest.mark.parametrize(
    ("kind", "words"), [("tpm", "input tokens per minute"), ("tpd", "input tokens per day")]
)
def test_prompts_beyond_a_limit_are_429(
    master: Client, model: tuple[int, str], kind: str, words: str
) -> None:
    user = user_of(master, role_limits=limits(model[0], **{kind: 30}))

    answer = ask(user, model[1], "word " * 100)
    assert refusal(answer, 429) == f"30 {words} exceeded (remaining: 30)."
    assert ask(user, model[1]).status_code == 200


def test_a_raised_limit_of_tokens_counts_at_once(box: Client) -> None:
    """As the project's own test has it: 10 tokens a day, then 50."""
    routers = box.read("/admin/routers", limit=100)["data"]
    router = next(each["id"] for each in routers if each["name"] == EMBEDDING)
    user = user_of(box, role_limits=limits(router, tpd=10))

    def embed(tokens: int) -> httpx.Response:
        # One token a word, and one at each end.
        return user.post("/embeddings", {"model": EMBEDDING, "input": " ".join(["cat"] * (tokens - 2))})

    assert body_of(embed(5))["usage"]["prompt_tokens"] == 5
    assert refusal(embed(10), 429) == "10 input tokens per day exceeded (remaining: 5)."
    box.change(f"/admin/roles/{user.role}", limits=limits(router, tpd=50))
    assert body_of(embed(10))["usage"]["prompt_tokens"] == 10
    assert refusal(embed(50), 429) == "50 input tokens per day exceeded (remaining: 35)."
    box.change(f"/admin/roles/{user.role}", limits=limits(router, tpd=None))
    assert embed(50).status_code == 200


def test_a_wrong_body_still_counts(master: Client, model: tuple[int, str]) -> None:
    user = user_of(master, role_limits=limits(model[0], rpm=1))

    assert user.post("/chat/completions", {"model": model[1]}).status_code == 422
    assert refusal(ask(user, model[1]), 429) == "1 requests per minute exceeded (remaining: 0)."


def test_another_role_counts_from_the_next_request_on(master: Client, model: tuple[int, str]) -> None:
    user, other = user_of(master), user_of(master, role_limits=limits(model[0]))
    assert ask(user, model[1]).text == NOT_FOUND

    master.change(f"/admin/users/{user.user}", role=other.role)

    assert ask(user, model[1]).status_code == 200
