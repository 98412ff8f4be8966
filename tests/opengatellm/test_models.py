"""The models that a user sees."""

from __future__ import annotations

from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.opengatellm.gate import Client, limits, unique, user_of

CARD = {"id", "type", "aliases", "created", "owned_by", "max_context_length", "costs", "object"}


def test_a_card_has_exactly_these_keys_under_name_and_alias(
    master: Client, administrator: Client, upstream: FakeUpstream
) -> None:
    organization_name = unique("owners")
    organization = administrator.make("/admin/organizations", name=organization_name)["id"]
    owner = user_of(master, permissions=["admin"], organization=organization)
    name, aliases = f"{unique('org')}/model", [unique("b"), unique("a")]
    router = owner.make(
        "/admin/routers", name=name, type="text-generation", aliases=aliases, cost_prompt_tokens=0.5
    )["id"]
    body = {"router": router, "type": "vllm", "url": upstream.base_url, "model_name": MODEL}
    owner.make("/admin/providers", **body)
    user = user_of(master, role_limits=limits(router))

    listed = user.read("/models")
    assert set(listed) == {"object", "data"}
    (card,) = listed["data"]
    assert set(card) == CARD
    assert isinstance(card.pop("created"), int)
    assert card == {
        "id": name,
        "type": "text-generation",
        "aliases": aliases,
        "owned_by": organization_name,
        "max_context_length": 4096,
        "costs": {"prompt_tokens": 0.5, "completion_tokens": 0.0},
        "object": "model",
    }
    for path in (name, *aliases):
        assert {**user.read(f"/models/{path}"), "created": 0} == {**card, "created": 0}
    assert user.get("/models/none").text == '{"detail":"Model not found."}'


def test_models_come_by_the_id_of_their_routers(box: Client) -> None:
    routers = [each["name"] for each in box.read("/admin/routers", limit=100)["data"] if each["providers"]]

    assert [card["id"] for card in box.read("/models")["data"]] == routers
