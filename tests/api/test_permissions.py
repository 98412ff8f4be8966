"""Who may call what: every route, for every kind of caller, against the table in docs/permissions.md."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from litestar import Litestar, get

from appliance.accounts.permissions import PERMISSIONS
from appliance.api.authentication import require_access
from tests.api.route_table import Entry, documented, registered
from tests.people import make_person, make_role, post_id
from tests.service import PLAIN, Service

STRICT = "/opengatellm/"
NOT_ENABLED = "Feature not enabled, please contact an administrator."
# What the box writes by itself while requests are refused: the log of it, and jobs.
VOLATILE = {"audit", "audit_refused", "login_failures", "limit_hits", "usage", "usage_quarters", "jobs"}
# How long what is to expire lives: it must still be in the future when the service reads it.
LIFE_SECONDS = 8
DEAD = ("no key", "bad key", "expired key", "expired user")
# Bodies that would change something if they were let through.
BODIES: dict[str, dict[str, Any]] = {
    "/admin/organizations": {"name": "intruders"},
    "/admin/organizations/{organization}": {"name": "taken over"},
    "/admin/roles": {"name": "intruders", "permissions": ["admin"]},
    "/admin/roles/{role}": {"permissions": ["admin"]},
    "/admin/routers": {"name": "intruder", "type": "text-generation"},
    "/admin/routers/{router}": {"name": "taken over"},
    "/admin/users/{user}": {"name": "taken over"},
    "/me/info": {"name": "somebody else"},
    "/me/keys": {"name": "another"},
}


@dataclass(frozen=True)
class Caller:
    """Who calls, and what of the service's own the calls are aimed at."""

    service: Service
    name: str
    headers: dict[str, str]
    permissions: frozenset[str]
    targets: dict[str, str]

    def may(self, entry: Entry) -> bool:
        """Tell what the table says of this caller and a route."""
        if entry.access == "public":
            return True
        if self.name in DEAD:
            return self.name == "expired user" and (entry.method, entry.path[-8:]) == ("GET", "/me/info")
        return entry.access == "key" or entry.access in self.permissions

    def call(self, http: httpx.Client, entry: Entry) -> httpx.Response:
        """Call a route, with a body that would change something where there is one."""
        path = re.sub(r"\{(\w+)\}", lambda match: self.targets.get(match[1], "1"), entry.path)
        suffix = re.sub(r"^.*?(/admin/|/me/)", r"\1", entry.path)
        body = None if entry.method in ("GET", "DELETE") else BODIES.get(suffix, {})
        return http.request(entry.method, path, json=body, headers=self.headers)


@pytest.fixture(scope="module")
def callers(bare_service: Service) -> list[Caller]:
    """Return every kind of caller, those who may least first: what they aim at is still there then."""
    service = bare_service
    targets = made_targets(service)
    nobody, expired_user = make_person(service), make_person(service)
    with service.http as http:
        body = {"name": "expired", "user": nobody.id, "expires": soon()}
        expired_key = http.post("/v1/admin/tokens", json=body).json()["token"]
        answer = http.patch(f"/v1/admin/users/{expired_user.id}", json={"expires": soon()})
        assert answer.status_code == 204, answer.text
    expired = time.time() + LIFE_SECONDS
    keys: list[tuple[str, str | None, tuple[str, ...]]] = [
        ("no key", None, ()),
        ("bad key", "sk-" + "x" * 43, ()),
        ("expired key", expired_key, ()),
        ("expired user", expired_user.key, ()),
        ("user", nobody.key, ()),
    ]
    keys += [
        (each, make_person(service, make_role(service, permissions=[each])).key, (each,))
        for each in PERMISSIONS[1:] + PERMISSIONS[:1]  # the administrator last
    ]
    everything = make_person(service, make_role(service, permissions=list(PERMISSIONS)))
    keys.append(("administrator", everything.key, PERMISSIONS))
    keys.append(("bootstrap key", service.key, PERMISSIONS))
    time.sleep(max(0.0, expired + 1 - time.time()))
    return [
        Caller(service, name, {"Authorization": f"Bearer {key}"} if key else {}, frozenset(allowed), targets)
        for name, key, allowed in keys
    ]


def soon() -> int:
    """Return when what is made now expires."""
    return int(time.time()) + LIFE_SECONDS


def made_targets(service: Service) -> dict[str, str]:
    """Make one of everything that can be aimed at; return the ids by the names that paths have for them."""
    victim = make_person(service)
    router = post_id(service, "/v1/admin/routers", {"name": "victim", "type": "text-generation"})
    return {
        "organization": str(post_id(service, "/v1/admin/organizations", {"name": "victims"})),
        "role": str(make_role(service)),
        "user": str(victim.id),
        "token": str(victim.key_id),
        "key": str(victim.key_id),
        "router": str(router),
        "router_id": str(router),
    }


def stored(service: Service) -> dict[str, list[Any]]:
    """Return what is in the store, without what the box writes by itself."""
    with closing(sqlite3.connect(f"file:{service.data_dir / 'appliance.db'}?mode=ro", uri=True)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in set(names) - VOLATILE}  # noqa: S608


def entries() -> list[Entry]:
    return sorted(documented())


def calls(caller: Caller, *, allowed: bool) -> Iterator[tuple[Entry, httpx.Response]]:
    with httpx.Client(base_url=caller.service.base_url, trust_env=False, verify=PLAIN, timeout=60) as http:
        for entry in entries():
            if caller.may(entry) is allowed:
                yield entry, caller.call(http, entry)


def test_every_route_is_in_the_table_and_no_other() -> None:
    assert documented() == registered()


def test_whoever_may_not_call_a_route_is_refused_and_changes_nothing(callers: list[Caller]) -> None:
    before = stored(callers[0].service)
    refused = 0
    for caller in callers:
        for entry, answer in calls(caller, allowed=False):
            refused += 1
            strict = entry.path.startswith(STRICT)
            missing = caller.name == "no key" or (caller.name in DEAD and not strict)
            assert answer.status_code == (401 if missing else 403), (caller.name, entry, answer.text)
            assert answer.text.count("Invalid API key.") == 0 or caller.name in DEAD
    assert stored(callers[0].service) == before
    assert refused > 300


def test_whoever_may_call_a_route_is_not_refused(callers: list[Caller]) -> None:
    for caller in callers:
        for entry, answer in calls(caller, allowed=True):
            refused = answer.status_code in (401, 403) and NOT_ENABLED not in answer.text
            assert not refused, (caller.name, entry, answer.status_code, answer.text)
            assert answer.status_code < 500 or answer.status_code == 503, (caller.name, entry, answer.text)


def test_a_denied_administrators_route_says_what_is_missing(callers: list[Caller]) -> None:
    user = next(caller for caller in callers if caller.name == "user")
    with httpx.Client(
        base_url=user.service.base_url, trust_env=False, verify=PLAIN, headers=user.headers
    ) as http:
        roles, routers = http.get("/opengatellm/v1/admin/roles"), http.get("/opengatellm/v1/admin/routers")

    assert roles.json() == {"detail": "Insufficient rights."}
    assert routers.json() == {"detail": "User has no admin rights."}


def test_methods_that_no_route_has_let_nobody_in(callers: list[Caller]) -> None:
    with httpx.Client(base_url=callers[0].service.base_url, trust_env=False, verify=PLAIN) as http:
        assert http.options("/v1/models").status_code == 401
        assert http.options("/v1/models", headers=callers[-1].headers).status_code == 403


@pytest.mark.parametrize("access", [None, "", "anyone", "Admin"])
def test_a_route_that_does_not_say_who_may_call_it_is_not_served(access: str | None) -> None:
    @get("/open", opt={} if access is None else {"access": access})
    async def handler() -> None:
        """Answer nothing."""

    with pytest.raises(RuntimeError, match=r"GET /open does not say who may call it"):
        require_access(Litestar(route_handlers=[handler], openapi_config=None).routes)


def test_a_route_that_says_who_may_call_it_is_served() -> None:
    @get("/open", access="read_metric")
    async def handler() -> None:
        """Answer nothing."""

    require_access(Litestar(route_handlers=[handler], openapi_config=None).routes)
