"""kill -9 at random moments, under administrators' changes and calls of models: what was acknowledged is there."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from appliance.accounts.secret import derive
from appliance.audit.verification import verify
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS
from tests.api.upstreams import LOOPBACK, routed
from tests.gateway.upstream.fake import FakeUpstream, fake_upstream, streaming
from tests.people import Person, make_person, make_role, router_id
from tests.service import Service, running_service

ROUNDS = 3
BUDGET = 1_000.0
MICROS = 1_000_000
# What is promised: half a second until a record is being written, the rest for the disk.
UNWRITTEN_SECONDS = 1.0


@dataclass
class Books:
    """What clients were told, kept outside of the service."""

    organizations: set[int] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    live_keys: dict[int, str] = field(default_factory=dict)
    dead_keys: set[str] = field(default_factory=set)
    # When an answer was there, and what it cost (millionths).
    answered: list[tuple[float, int]] = field(default_factory=list)


def test_nothing_acknowledged_is_lost_and_the_books_balance(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    randomness = random.Random(20260)
    books = Books()
    with fake_upstream(streaming(pause=0.005)) as upstream:
        person, model = _set_up(data_dir, upstream)
        for _ in range(ROUNDS):
            killed_at = _killed_under_load(data_dir, person, model, books, randomness.uniform(0.3, 2.5))
            _check_store(data_dir, person, books, killed_at)
        with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
            _check_answers(service, person, books)


def _set_up(data_dir: Path, upstream: FakeUpstream) -> tuple[Person, str]:
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
        model = routed(service, upstream)
        with service.http as http:
            prices = {"cost_prompt_tokens": 1000.0, "cost_completion_tokens": 3000.0}
            path = f"/v1/admin/routers/{router_id(service, model)}"
            assert http.patch(path, json=prices).status_code == 204
        return make_person(service, make_role(service), budget=BUDGET), model


def _killed_under_load(data_dir: Path, person: Person, model: str, books: Books, after: float) -> float:
    """Run a service under load, kill it ``after`` seconds, and return when that was."""
    over = threading.Event()
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
        here = Person(service, person.id, person.email, person.role, person.key_id, person.key)
        work: list[Callable[[], None]] = [lambda: _administer(here, books, over)] * 2
        work += [
            lambda: _ask(here, model, books, over, streamed=True),
            lambda: _ask(here, model, books, over),
        ]
        with ThreadPoolExecutor(len(work)) as pool:
            workers = [pool.submit(each) for each in work]
            time.sleep(after)
            # Before it: on a busy machine this thread may wait for its turn long after the service is gone, and all
            # that time would pass for time that the service had.
            killed_at = time.monotonic()
            os.kill(service.process.pid, signal.SIGKILL)
            over.set()
            for worker in workers:
                worker.result()
        service.process.wait(30)
    return killed_at


_numbers = itertools.count(1)


def _administer(person: Person, books: Books, over: threading.Event) -> None:
    """Change things until the service is gone; note what it acknowledged."""
    with person.service.http as http:
        while not over.is_set():
            try:
                name = f"organization {next(_numbers)}"
                made = http.post("/v1/admin/organizations", json={"name": name})
                assert made.status_code == 201, made.text
                books.names[made.json()["id"]] = name
                books.organizations.add(made.json()["id"])
                key = http.post("/v1/admin/tokens", json={"name": name, "user": person.id}).json()
                books.live_keys[key["id"]] = key["token"]
                if key["id"] % 2:
                    # From here on until it is acknowledged, either is right.
                    text = books.live_keys.pop(key["id"])
                    assert http.delete(f"/v1/admin/tokens/{key['id']}").status_code == 204
                    books.dead_keys.add(text)
            except httpx.TransportError:
                return


def _ask(person: Person, model: str, books: Books, over: threading.Event, *, streamed: bool = False) -> None:
    """Ask a model until the service is gone; note what it said that the answers cost."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Count to three."}]}
    with person.http as http:
        while not over.is_set():
            try:
                if streamed:
                    fields = {**body, "stream": True}
                    answer = http.post("/opengatellm/v1/chat/completions", json=fields)
                    assert answer.text.endswith("data: [DONE]\n\n"), answer.text
                    cost = 11 * 1000 + 3 * 3000
                else:
                    answer = http.post("/v1/chat/completions", json=body)
                    cost = round(answer.json()["usage"]["cost"] * MICROS)
                assert answer.status_code == 200, answer.text
            except httpx.TransportError:
                return
            books.answered.append((time.monotonic(), cost))


def _check_store(data_dir: Path, person: Person, books: Books, killed_at: float) -> None:
    """Open the store as the next start would, and hold it against the books."""
    database = Database.open(data_dir / "appliance.db", MIGRATIONS)
    secret = (data_dir / "secret.key").read_bytes()
    checked = database.read_sync(lambda db: verify(db, derive(secret, "audit log")))
    assert checked.broken is None
    database.close()
    with closing(sqlite3.connect(data_dir / "appliance.db")) as store:
        assert store.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        names = dict(store.execute("SELECT id, name FROM organizations"))
        lines = store.execute("SELECT target FROM audit WHERE action = 'organization.create'")
        audited = {int(row[0]) for row in lines}
        keys = {row[0] for row in store.execute("SELECT id FROM keys")}
        costs = [row[0] for row in store.execute("SELECT cost FROM usage WHERE user_id = ?", [person.id])]
        budget = store.execute("SELECT budget FROM users WHERE id = ?", [person.id]).fetchone()[0]
        hits = store.execute("SELECT sum(requests) FROM limit_hits WHERE user_id = ?", [person.id])
        counted = hits.fetchone()[0] or 0
    assert books.organizations, "nothing was acknowledged before the service was killed"
    assert {number: names.get(number) for number in books.organizations} == books.names
    # A change and its line in the log are one: neither is there without the other.
    assert audited == set(names)
    assert set(books.live_keys) <= keys
    # The budget went down by what the records say, to the last millionth.
    assert round(BUDGET * MICROS) - budget == sum(costs)
    old = [cost for moment, cost in books.answered if moment < killed_at - UNWRITTEN_SECONDS]
    assert len(costs) >= len(old)
    assert counted >= len(costs)
    # What was lost in this round is nobody's debt in the next.
    books.answered = [(0.0, cost) for cost in costs]


def _check_answers(service: Service, person: Person, books: Books) -> None:
    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{service.base_url}/v1/me/info", headers=headers, trust_env=False).status_code

    live, dead = list(books.live_keys.values())[-20:], list(books.dead_keys)[-20:]
    assert live
    assert dead
    assert [status(key) for key in live] == [200] * len(live)
    assert [status(key) for key in dead] == [401] * len(dead)
    with service.http as http:
        shown = http.get(f"/v1/admin/users/{person.id}").json()["budget"]
    spent = sum(cost for _, cost in books.answered)
    assert round(shown * MICROS) == round(BUDGET * MICROS) - spent
