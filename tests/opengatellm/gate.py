"""OpenGateLLM's API as its clients see it: one base URL, one key, errors that hold ``detail`` alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from tests.service import Service

T = TypeVar("T")

ROOT = "/opengatellm"
LIMIT_TYPES = ("rpm", "rpd", "tpm", "tpd")
PASSWORD = "a password"

# One for all: making a client takes longer than most requests.
HTTP = httpx.Client(timeout=120, trust_env=False)

_numbers = itertools.count(1)


def unique(word: str) -> str:
    """Return a name that no other test has."""
    return f"{word}-{next(_numbers)}-of-opengatellm"


@dataclass(frozen=True)
class Client:
    """Someone with a key."""

    service: Service
    key: str
    user: int = 0
    email: str = "master"
    role: int = 0

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to a path of the API's ``/v1``."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return HTTP.request(method, f"{self.service.base_url}{ROOT}/v1{path}", headers=headers, **options)

    def get(self, path: str, **query: Any) -> httpx.Response:
        """Read something."""
        return self.call("GET", path, params=query)

    def post(self, path: str, body: Any) -> httpx.Response:
        """Make or ask something."""
        return self.call("POST", path, json=body)

    def patch(self, path: str, body: Any) -> httpx.Response:
        """Change something."""
        return self.call("PATCH", path, json=body)

    def delete(self, path: str, **query: Any) -> httpx.Response:
        """Delete something."""
        return self.call("DELETE", path, params=query)

    def read(self, path: str, **query: Any) -> Any:
        """Return the body of what must be there."""
        return body_of(self.get(path, **query))

    def make(self, path: str, **fields: Any) -> Any:
        """Make something that must be taken, and return the answer."""
        return body_of(self.post(path, fields), 201)

    def change(self, path: str, **fields: Any) -> None:
        """Change something, which must be taken and is answered by nothing."""
        empty(self.patch(path, fields))

    def remove(self, path: str) -> None:
        """Delete something, which is answered by nothing."""
        empty(self.delete(path))


def body_of(answer: httpx.Response, status: int = 200) -> Any:
    """Return the body of an answer that must have that status."""
    assert answer.status_code == status, answer.text
    return answer.json()


def empty(answer: httpx.Response) -> None:
    """Check that an answer is the 204 of a change."""
    assert (answer.status_code, answer.content) == (204, b""), answer.text


def refusal(answer: httpx.Response, status: int) -> Any:
    """Return the detail of an error, beside which there is nothing."""
    body = body_of(answer, status)
    assert set(body) == {"detail"}
    return body["detail"]


def wrong_fields(answer: httpx.Response) -> list[tuple[list[Any], str]]:
    """Return place and text of each item of a 422."""
    items = refusal(answer, 422)
    assert all(
        {"type", "loc", "msg"} <= set(item) <= {"type", "loc", "msg", "input", "ctx"} for item in items
    )
    return [(item["loc"], item["msg"]) for item in items]


def limits(router: int, **values: int | None) -> list[dict[str, Any]]:
    """Return all four limits of a router, unlimited but for ``values``."""
    return [{"router": router, "type": kind, "value": values.get(kind)} for kind in LIMIT_TYPES]


def user_of(
    admin: Client,
    *,
    role_limits: list[dict[str, Any]] | None = None,
    permissions: list[str] | None = None,
    **fields: Any,
) -> Client:
    """Make a role, a user that has it, and a key, as the project's own fixtures do."""
    role = admin.make(
        "/admin/roles",
        name=unique("role"),
        default=False,
        permissions=permissions or [],
        limits=role_limits or [],
    )["id"]
    email = f"{unique('user')}@example.org"
    user = admin.make("/admin/users", **{"email": email, "password": PASSWORD, "role": role, **fields})["id"]
    token = admin.make("/admin/tokens", name="token", user=user, password="unused", expires=None)["token"]
    return Client(admin.service, token, user, email, role)


def soon(look: Callable[[], T | None], seconds: float = 2.0) -> T:
    """Return the first result that is not None, or fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, "not there in time"
        time.sleep(0.05)
    return found
