"""Roles, users and keys for tests, made through the administrators' routes."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.service import PLAIN, Service

LIMIT_TYPES = ("tpm", "tpd", "rpm", "rpd")
PASSWORD = "correct horse battery staple"
# How long what is to expire lives: on a busy machine too, it is made and used before.
LIFE_SECONDS = 5

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Person:
    """A user with a key."""

    service: Service
    id: int
    email: str
    role: int
    key_id: int
    key: str

    @property
    def http(self) -> httpx.Client:
        """Return a plain client that sends this user's key."""
        return httpx.Client(
            base_url=self.service.base_url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=120,
            trust_env=False,
            verify=PLAIN,
        )


def router_id(service: Service, name: str) -> int:
    """Return the id of a router."""
    with service.http as http:
        answer = http.get("/v1/admin/routers", params={"limit": 100})
        assert answer.status_code == 200, answer.text
        return next(int(each["id"]) for each in answer.json()["data"] if each["name"] == name)


def limits(router: int, **values: int | None) -> list[dict[str, Any]]:
    """Return all four limits of a router, unlimited but for ``values``."""
    return [{"router": router, "type": kind, "value": values.get(kind)} for kind in LIMIT_TYPES]


def make_role(service: Service, **fields: Any) -> int:
    """Make a role; without ``limits`` or ``default_limits`` it may use every model without limit."""
    if "limits" not in fields and "default_limits" not in fields:
        fields["default_limits"] = [{"type": kind, "value": None} for kind in LIMIT_TYPES]
    return post_id(service, "/v1/admin/roles", {"name": f"role-{next(_numbers)}", **fields})


def make_person(service: Service, role: int | None = None, **fields: Any) -> Person:
    """Make a user (of a new role, unless given) and a key for it."""
    role = make_role(service) if role is None else role
    email = f"user-{next(_numbers)}@example.org"
    body = {"email": email, "password": PASSWORD, "role": role, **fields}
    user = post_id(service, "/v1/admin/users", body)
    with service.http as http:
        answer = http.post("/v1/admin/tokens", json={"name": "test", "user": user})
        assert answer.status_code == 201, answer.text
        token = answer.json()
    return Person(service, user, body["email"], role, token["id"], token["token"])


def post_id(service: Service, path: str, body: dict[str, Any]) -> int:
    """Make something as the administrator and return its id."""
    with service.http as http:
        answer = http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])


def short_life() -> int:
    """Return when what is made now expires (seconds since the epoch)."""
    return int(time.time()) + LIFE_SECONDS


def outlive(expires: int) -> None:
    """Wait until that moment has passed."""
    time.sleep(max(0.0, expires - time.time()) + 0.1)
