"""Routers with upstream servers behind them, made through the administrators' routes."""

from __future__ import annotations

import itertools
from typing import Any

import httpx

from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.people import post_id
from tests.service import Service

LOOPBACK = "127.0.0.1/32"

_numbers = itertools.count(1)


def make_router(service: Service, kind: str = "text-generation", **fields: Any) -> tuple[int, str]:
    """Make a router without providers; return its id and name."""
    name = f"routed-{next(_numbers)}"
    return post_id(service, "/v1/admin/routers", {"name": name, "type": kind, **fields}), name


def add_provider(service: Service, router: int, url: str, **fields: Any) -> int:
    """Put an upstream server behind a router."""
    body = {"router": router, "type": "vllm", "url": url, "model_name": MODEL, "timeout": 20, **fields}
    return post_id(service, "/v1/admin/providers", body)


def routed(
    service: Service, *upstreams: FakeUpstream | str, kind: str = "text-generation", **fields: Any
) -> str:
    """Make a router with these servers behind it, and return its name."""
    router, name = make_router(service, kind)
    for upstream in upstreams:
        url = upstream if isinstance(upstream, str) else upstream.base_url
        add_provider(service, router, url, **fields)
    return name


def ask(service: Service, model: str, mount: str = "/v1", **fields: Any) -> httpx.Response:
    """Ask a model to chat."""
    with service.http as http:
        body = {"model": model, "messages": [{"role": "user", "content": "Count to three."}], **fields}
        return http.post(f"{mount}/chat/completions", json=body)
