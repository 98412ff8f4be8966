"""Another machine of the LAN: stock clients call every kind of endpoint over https, trusting the box's authority alone.

``python -m tests.airgap.box.tour --base https://192.168.77.10 --authority FILE --speech WAV`` with the first
administrator's key on standard input. Prints a line for each capability; exit status 1 and the reason at the first
that fails. Everything it makes it deletes, so it can run again; usage and audit keep their lines.
"""

from __future__ import annotations

import argparse
import json
import secrets
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import DefaultHttpxClient, OpenAI, RateLimitError

CHAT = "smollm2-135m-instruct"
EMBEDDING = "bge-small-en-v1.5"
RERANK = "ms-marco-minilm-l-12-v2"
SPEECH = "whisper-base"
CURL = ("curl", "-q", "-sS", "--noproxy", "*")
SCHEMA = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}


class TourError(Exception):
    """An endpoint did not answer as it must."""


def require(truth: object, text: str) -> None:
    """Raise TourError with ``text`` unless ``truth``; unlike assert also under -O."""
    if not truth:
        raise TourError(text)


@dataclass
class Tour:
    """The administrator's clients and what they make."""

    base: str
    authority: Path
    speech: Path
    key: str

    def http(self, key: str) -> httpx.Client:
        """Return a plain client with a key, which trusts the exported authority and nobody else."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.base, verify=self._trust(), headers=headers, timeout=180, trust_env=False
        )

    def openai(self, key: str) -> OpenAI:
        """Return the official client, with the same trust."""
        http = DefaultHttpxClient(verify=self._trust(), trust_env=False)
        return OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=180, http_client=http)

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def call(
        self, method: str, path: str, body: object = None, key: str | None = None, status: int = 200
    ) -> Any:
        """Call one route and return the JSON of its answer; another status than ``status`` is an error."""
        with self.http(self.key if key is None else key) as client:
            answer = client.request(method, path, json=body)
        require(
            answer.status_code // 100 == status // 100 if status == 200 else answer.status_code == status,
            f"{method} {path}: {answer.status_code} instead of {status}: {answer.text[:500]}",
        )
        return (
            answer.json()
            if answer.content and "json" in answer.headers.get("content-type", "")
            else answer.text
        )

    # -- models ---------------------------------------------------------------------------------------------------

    def models(self) -> None:
        """The models that the packs brought, and which of them are loaded."""
        names = {model.id for model in self.openai(self.key).models.list()}
        require({CHAT, EMBEDDING, RERANK, SPEECH} <= names, f"models are missing: {sorted(names)}")

    def chat(self) -> None:
        """A whole answer, and one under a schema."""
        client = self.openai(self.key)
        messages: Any = [{"role": "user", "content": "Is water wet?"}]
        answer = client.chat.completions.create(model=CHAT, messages=messages, max_tokens=8)
        require(answer.usage and answer.usage.completion_tokens, "a chat without tokens")
        form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        held = client.chat.completions.create(
            model=CHAT, messages=messages, max_tokens=60, response_format=form
        )
        require(
            isinstance(json.loads(held.choices[0].message.content or "")["wet"], bool),
            "an answer that its schema does not hold",
        )

    def streamed_chat(self) -> None:
        """The same in pieces, with the usage at the end."""
        messages: Any = [{"role": "user", "content": "Name a colour."}]
        stream = self.openai(self.key).chat.completions.create(
            model=CHAT, messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(stream)
        require(len(pieces) > 2 and pieces[-1].usage is not None, "a stream without pieces or usage")

    def completions(self) -> None:
        """Text that goes on, whole and streamed."""
        client = self.openai(self.key)
        whole = client.completions.create(model=CHAT, prompt="The harbour", max_tokens=6, temperature=0)
        pieces = client.completions.create(
            model=CHAT, prompt="The harbour", max_tokens=6, temperature=0, stream=True
        )
        text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
        require(whole.choices[0].text == text != "", f"{whole.choices[0].text!r} is not {text!r}")

    def embeddings(self) -> None:
        """Vectors: what means the same is nearer."""
        answer = self.openai(self.key).embeddings.create(
            model=EMBEDDING, input=["a ferry", "a ship", "bread and butter"]
        )
        ferry, ship, bread = (item.embedding for item in answer.data)
        near, far = (sum(a * b for a, b in zip(ferry, other, strict=True)) for other in (ship, bread))
        require(len(ferry) == 384 and near > far, f"a ferry is {near:.2f} a ship and {far:.2f} bread")

    def rerank(self) -> None:
        """The passage that answers comes first."""
        body = {
            "model": RERANK,
            "query": "Where do ships land?",
            "documents": ["Bread is baked.", "In a harbour."],
        }
        require(self.call("POST", "/v1/rerank", body)["results"][0]["index"] == 1, "bread before the harbour")

    def transcription(self) -> None:
        """Speech becomes text, in the confined worker."""
        with self.speech.open("rb") as file:
            text = self.openai(self.key).audio.transcriptions.create(model=SPEECH, file=file).text
        require("ask not what your country can do" in text.lower(), f"heard: {text}")

    def stock_curl(self) -> None:
        """The command-line client, with the authority's file alone."""
        done = subprocess.run(
            [*CURL, "--cacert", str(self.authority), "-H", "@-", f"{self.base}/v1/models"],
            input=f"Authorization: Bearer {self.key}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        require(done.returncode == 0 and CHAT in done.stdout, f"curl: {done.stdout}{done.stderr}")
        bare = [*CURL, "-o", "/dev/null", f"{self.base}/health"]
        refused = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=False)
        require(
            refused.returncode == 60, f"curl without the authority: {refused.returncode} {refused.stderr}"
        )

    def pages(self) -> None:
        """Health, the documentation page with its assets, the API's description, metrics."""
        for path in ("/health", "/health/ready", "/docs", "/docs/start.js", "/openapi.json"):
            self.call("GET", path)
        assets = [part.split('"')[0] for part in self.call("GET", "/docs").split('"/docs/assets/')[1:]]
        require(assets, "the documentation page has no assets of its own")
        for asset in assets:
            self.call("GET", f"/docs/assets/{asset}")
        metrics = self.call("GET", "/metrics")
        require("appliance_calls_total{" in metrics, "metrics without calls")
        self.call("GET", "/metrics", key="", status=401)

    # -- accounts -------------------------------------------------------------------------------------------------

    def accounts(self) -> None:
        """Organization, role, user, login, keys, limits, budget, usage, audit, and their end."""
        mark = secrets.token_hex(4)
        email, password = f"ada-{mark}@box.example", secrets.token_urlsafe(16)
        routers = self.call("GET", "/v1/admin/routers?limit=100")
        router = next(item["id"] for item in routers["data"] if item["name"] == CHAT)
        self.call(
            "PATCH", f"/v1/admin/routers/{router}", {"cost_prompt_tokens": 10, "cost_completion_tokens": 30}
        )
        none: list[dict[str, object]] = [{"type": kind, "value": None} for kind in ("rpd", "tpm", "tpd")]
        limits = [{"type": "rpm", "value": 3}, *none]
        role = self.call("POST", "/v1/admin/roles", {"name": f"staff-{mark}", "default_limits": limits})["id"]
        organization = self.call("POST", "/v1/admin/organizations", {"name": f"Town hall {mark}"})["id"]
        user = self.call(
            "POST",
            "/v1/admin/users",
            {
                "email": email,
                "name": "Ada",
                "password": password,
                "role": role,
                "organization": organization,
                "budget": 1,
            },
        )["id"]
        made = self.call("POST", "/v1/admin/tokens", {"name": "laptop", "user": user})
        token = made.get("token") or made["key"]

        self.call("POST", "/v1/auth/login", {"email": email, "password": "wrong"}, key="", status=401)
        session = self.call("POST", "/v1/auth/login", {"email": email, "password": password}, key="")["key"]
        own = self.call("GET", "/v1/me/info", key=session)
        require(own["email"] == email, f"logged in as {own}")
        self.call("GET", "/v1/admin/users", key=session, status=403)
        self.call("POST", "/v1/me/keys", {"name": "own"}, key=session)

        client = self.openai(token)
        messages: Any = [{"role": "user", "content": "Hello"}]
        for _ in range(3):
            client.chat.completions.create(model=CHAT, messages=messages, max_tokens=4)
        try:
            client.chat.completions.create(model=CHAT, messages=messages, max_tokens=4)
        except RateLimitError as refused:
            require("retry-after" in refused.response.headers, "429 without Retry-After")
        else:
            raise TourError("the fourth request of three a minute was answered")
        self._budget(user, organization, token)

        usage = self.call("GET", f"/v1/admin/usage?user={user}&status=2xx")
        require(len(usage["data"]) == 3, f"not three requests in the usage: {usage}")
        require(self.call("GET", "/v1/me/usage", key=session)["data"], "no usage of one's own")
        self.call("DELETE", f"/v1/admin/tokens/{made['id']}")
        self.call("GET", "/v1/models", key=token, status=401)
        self.call("DELETE", f"/v1/admin/users/{user}")
        self.call("DELETE", f"/v1/admin/roles/{role}")
        self.call("DELETE", f"/v1/admin/organizations/{organization}")
        lines = self.call("GET", "/v1/admin/audit?limit=50")["data"]
        require(any(str(line.get("target")) == str(user) for line in lines), "the audit log lacks the user")
        require(self.call("GET", "/v1/admin/audit/verify"), "the audit log's chain")

    def _budget(self, user: int, organization: int, token: str) -> None:
        left = self.call("GET", f"/v1/admin/users/{user}")["budget"]
        require(0 < left < 1, f"three chats cost {1 - left}")
        rest = {"organization": organization, "expires": None, "budget": 0}
        self.call("PATCH", f"/v1/admin/users/{user}", rest)
        limits = [{"type": kind, "value": None} for kind in ("rpm", "rpd", "tpm", "tpd")]
        role = self.call("GET", f"/v1/admin/users/{user}")["role"]
        self.call("PATCH", f"/v1/admin/roles/{role}", {"default_limits": limits})
        body = {"model": CHAT, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
        with self.http(token) as client:
            refused = client.post("/v1/chat/completions", json=body)
        require(
            refused.status_code == 429 and "budget" in refused.text,
            f"a chat with an empty budget: {refused.status_code} {refused.text[:300]}",
        )


def main() -> None:
    """Go round once."""
    parser = argparse.ArgumentParser(prog="python -m tests.airgap.box.tour")
    parser.add_argument("--base", required=True)
    parser.add_argument("--authority", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    options = parser.parse_args()
    tour = Tour(options.base, options.authority, options.speech, sys.stdin.readline().strip())
    stops: list[Callable[[], None]] = [
        *(tour.models, tour.chat, tour.streamed_chat, tour.completions, tour.embeddings, tour.rerank),
        *(tour.transcription, tour.stock_curl, tour.pages, tour.accounts),
    ]
    for stop in stops:
        try:
            stop()
        except Exception as error:
            raise SystemExit(f"{stop.__name__}: {type(error).__name__}: {error}") from error
        print(stop.__name__, flush=True)


if __name__ == "__main__":
    main()
