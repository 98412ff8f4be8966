"""The box's own key on OpenGateLLM's mount: its master key, as long as it is an administrator's."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.api.upstreams import LOOPBACK, ask, routed
from tests.gateway.upstream.fake import fake_upstream, streaming
from tests.people import limits, make_person, make_role, router_id
from tests.service import running_service

MOUNT = "/opengatellm/v1"


def test_once_its_user_is_no_administrator_it_is_a_key_like_others(tmp_path: Path) -> None:
    with (
        fake_upstream(streaming()) as upstream,
        running_service(tmp_path / "data", APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service,
    ):
        model = routed(service, upstream)
        other = make_person(service, make_role(service, permissions=["admin"]))
        few = make_role(service, limits=limits(router_id(service, model), rpm=1))
        with service.http as http:
            mine = http.get("/v1/me/info").json()["id"]
            assert http.get(f"{MOUNT}/me/info").json()["id"] == 0
        assert [ask(service, model, MOUNT).status_code for _ in range(3)] == [200] * 3
        with other.http as http:
            assert http.patch(f"/v1/admin/users/{mine}", json={"role": few}).status_code == 204
        with service.http as http:
            assert http.get(f"{MOUNT}/me/info").json()["id"] == mine
            assert http.get(f"{MOUNT}/admin/users").status_code == 403
        assert [ask(service, model, MOUNT).status_code for _ in range(3)] == [200, 429, 429]
        login = {"email": "master", "password": service.key}
        answer = httpx.post(f"{service.base_url}{MOUNT}/auth/login", json=login, trust_env=False)
        assert answer.status_code == 401, answer.text
