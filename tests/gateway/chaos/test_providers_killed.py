"""Three providers behind one router, of which one is killed under load: two boxes like this one, and another engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.upstreams import LOOPBACK, add_provider, make_router, routed
from tests.gateway.chaos.load import events_of, is_cut_clearly, is_error_free, under_load
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
        statuses, texts = under_load(
            front.base_url, person.key, model, two.process.pid, requests=REQUESTS, clients=8
        )
        assert Counter(statuses) == {200: REQUESTS}
        assert not [text for text in texts if not _is_whole(text) and not is_cut_clearly(text)]
        # Most were not even touched by it.
        assert sum(map(_is_whole, texts)) > REQUESTS // 2
        _check_books(front, person)


def _is_whole(text: str) -> bool:
    said = [each["choices"][0]["delta"].get("content") or "" for each in events_of(text) if "choices" in each]
    return "".join(said) == "".join(WORDS) and is_error_free(text)


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
