"""Routers and providers for the tests of choosing among them."""

from __future__ import annotations

from typing import Any

from appliance.gateway.routing.records import Provider, Router


def provider(number: int, **fields: Any) -> Provider:
    """Return a provider of router 1, at an upstream server unless told otherwise."""
    values: dict[str, Any] = {
        "router_id": 1,
        "user_id": None,
        "type": "vllm",
        "url": f"http://10.0.0.{number}/",
        "sealed_key": None,
        "timeout": 300,
        "model_name": "model",
        "hosting_zone": "WOR",
        "total_params": 0,
        "active_params": 0,
        "qos_metric": None,
        "qos_limit": None,
        "max_context_length": None,
        "vector_size": None,
        "created_at": 0,
        "updated_at": None,
    }
    return Provider(id=number, **{**values, **fields})


def router(*providers: Provider, number: int = 1, **fields: Any) -> Router:
    """Return a router with these providers."""
    values: dict[str, Any] = {
        "name": f"router-{number}",
        "aliases": (),
        "type": "text-generation",
        "user_id": None,
        "owner": None,
        "load_balancing_strategy": "shuffle",
        "cost_prompt_tokens": 0.0,
        "cost_completion_tokens": 0.0,
        "created_at": 0,
        "updated_at": 0,
    }
    return Router(id=number, providers=providers, **{**values, **fields})


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now
