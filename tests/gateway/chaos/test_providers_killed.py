"""Three providers behind one router, of which one is killed under load: two boxes like this one, and another engine."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.upstreams import LOOPBACK, add_provider, make_router, routed
from tests.gateway.upstream.fake import FakeUpstream, fake_upstream, streaming
from tests.people import Person, make_person, make_role
from tests.service import Service, running_service

WORDS = ("one", " two", " three")
REQUESTS = 60
BUDGET = 100.0


@pytest.fixture
def engine() -> Iterator[FakeUpstream]:
    """Start the engine behind all; its answers take a tenth of a second."""
    with fake_upstream(streaming(WORDS, pause=0.04)) as server:
        yield server


@contextmanager
def _box(folder: Path) -> Iterator[Service]:
    with running_service(folder, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
        yield service


def test_no_client_sees_an_error_before_the_first_byte_and_a_clear_one_after_it(
    tmp_path: Path, engine: FakeUpstream
) -> None:
    with _box(tmp_path / "front") as front, _box(tmp_path / "one") as one, _box(tmp_path / "two") as two:
        router, model = make_router(front, cost_completion_tokens=1000.0)
        add_provider(front, router, engine.base_url)
        for back in (one, two):
            fields = {"type": "appliance", "key": back.key, "model_name": routed(back, engine)}
            add_provider(front, router, back.base_url, **fields)
        person = make_person(front, make_role(front), budget=BUDGET)
        statuses, texts = _under_load(person, model, victim=two)
        assert Counter(statuses) == {200: REQUESTS}
        assert not [text for text in texts if not _is_whole(text) and not _is_cut_clearly(text)]
        # Most were not even touched by it.
        assert sum(map(_is_whole, texts)) > REQUESTS // 2
        _check_books(front, person)


def _under_load(person: Person, model: str, victim: Service) -> tuple[list[int], list[str]]:
    """Ask streams from eight clients, kill the victim when a fifth is through, and return what all got."""
    through = threading.Semaphore(0)

    def ask(_number: int) -> tuple[int, str]:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Count."}]}
        headers = {"Authorization": f"Bearer {person.key}"}
        with httpx.Client(base_url=person.service.base_url, headers=headers, trust_env=False) as http:
            answer = http.post("/v1/chat/completions", json={**body, "stream": True}, timeout=60)
        through.release()
        return answer.status_code, answer.text

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(REQUESTS)]
        for _ in range(REQUESTS // 5):
            assert through.acquire(timeout=60)
        os.kill(victim.process.pid, signal.SIGKILL)
        results = [each.result() for each in asked]
    return [status for status, _ in results], [text for _, text in results]


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert lines.pop() == "[DONE]", text
    return [json.loads(line) for line in lines]


def _is_whole(text: str) -> bool:
    events = _events(text)
    said = [event["choices"][0]["delta"].get("content") or "" for event in events if "choices" in event]
    return "".join(said) == "".join(WORDS) and not any("error" in event for event in events)


def _is_cut_clearly(text: str) -> bool:
    """Tell whether the last event, and no other, is an error that a client can read."""
    *before, last = _events(text)
    readable = bool(before) and "please try again" in str(last.get("error", {}).get("message"))
    return readable and not any("error" in event for event in before)


def _check_books(front: Service, person: Person) -> None:
    """Nothing is in flight any more, every request has one record, and the budget went down by their sum."""
    deadline = time.monotonic() + 10
    while any(_in_flight(front)):  # a client has its last byte a moment before its request is over
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with front.http as http:
        listed = http.get("/v1/admin/usage", params={"user": person.id, "limit": 1}).json()
        budget = http.get(f"/v1/admin/users/{person.id}").json()["budget"]
    assert listed["total"] == REQUESTS
    assert budget == pytest.approx(BUDGET - listed["sums"]["cost"])


def _in_flight(front: Service) -> list[float]:
    with front.http as http:
        lines = http.get("/metrics").text.split("\n")
    values = [
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("appliance_provider_in_flight{")
    ]
    assert len(values) == 3
    return values
