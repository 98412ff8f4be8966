"""POST /v1/usage/completions: tokens by windows of time, as CompactifAI's accounts ask for them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.api.account.test_usage import did
from tests.gateway.usage.store import ms, record
from tests.people import Person, make_person
from tests.service import CHAT, EMBEDDING, Service

MOUNTS = ("/v1", "/compactifai/v1")
START, END = "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"


def ask(person: Person, mount: str = "/v1", **fields: Any) -> httpx.Response:
    with person.http as http:
        return http.post(f"{mount}/usage/completions", json={"start_time": START, **fields})


def report(person: Person, mount: str = "/v1", **fields: Any) -> dict[str, Any]:
    answer = ask(person, mount, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_report_has_the_published_shape(bare_service: Service) -> None:
    person = make_person(bare_service)
    at = ms("2026-03-01T10:20:30+00:00")
    did(person, *(record(at, user_id=person.id, model=model) for model in ("b", "a", "a")))
    for mount in MOUNTS:
        asked = {"end_time": END, "window_size": "HOUR", "group_by": ["model"]}
        window = {"windowStart": "2026-03-01T10:00:00Z", "windowEnd": "2026-03-01T11:00:00Z"}
        tokens = ({"input_token": 20, "output_token": 4}, {"input_token": 10, "output_token": 2})
        assert report(person, mount, **asked) == {
            "data": [
                {"groupBy": {"model": model}, "user_id": str(person.id), **used, **window}
                for model, used in zip("ab", tokens, strict=True)
            ],
            "start_time": START,
            "end_time": END,
            "window_size": "HOUR",
        }


def test_days_of_utc_are_the_default_and_the_end_is_now(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, record(round(time.time() * 1000) - 5000, user_id=person.id))
    start = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    found = report(person, start_time=start)
    (row,) = found["data"]
    assert (row["groupBy"], row["input_token"]) == ({}, 10)
    day = datetime.fromisoformat(row["windowStart"])
    assert (day.hour, day.minute) == (0, 0)
    assert datetime.fromisoformat(row["windowEnd"]) - day == timedelta(days=1)
    assert (found["start_time"], found["window_size"]) == (start, "DAY")
    assert abs(datetime.fromisoformat(found["end_time"]) - datetime.now(UTC)) < timedelta(seconds=30)


@pytest.mark.parametrize(
    ("zone", "start", "first", "last", "hours"),
    [
        (
            "Europe/Paris",
            "2026-03-29T00:00:00+01:00",
            "2026-03-29T00:00:00+01:00",
            "2026-03-30T00:00:00+02:00",
            23,
        ),
        (
            "Europe/Paris",
            "2026-10-25T00:00:00+02:00",
            "2026-10-25T00:00:00+02:00",
            "2026-10-26T00:00:00+01:00",
            25,
        ),
        (
            "America/New_York",
            "2026-03-08T00:00:00-05:00",
            "2026-03-08T00:00:00-05:00",
            "2026-03-09T00:00:00-04:00",
            23,
        ),
        (
            "Australia/Lord_Howe",
            "2026-04-05T00:00:00+11:00",
            "2026-04-05T00:00:00+11:00",
            "2026-04-06T00:00:00+10:30",
            24.5,
        ),
        (
            "Asia/Kathmandu",
            "2026-03-29T00:00:00+05:45",
            "2026-03-29T00:00:00+05:45",
            "2026-03-30T00:00:00+05:45",
            24,
        ),
    ],
)
def test_days_follow_the_clocks_of_a_zone(
    bare_service: Service, zone: str, start: str, first: str, last: str, hours: float
) -> None:
    person = make_person(bare_service)
    quarters = int(hours * 4)
    did(
        person,
        *(record(ms(start) + number * 900_000, user_id=person.id) for number in range(-1, quarters + 1)),
    )
    early = (datetime.fromisoformat(start) - timedelta(days=2)).isoformat()
    late = (datetime.fromisoformat(start) + timedelta(days=3)).isoformat()
    found = report(person, start_time=early, end_time=late, window_timezone=zone)
    before, day, after = found["data"]
    assert (day["windowStart"], day["windowEnd"]) == (first, last)
    assert day["input_token"] == 10 * quarters
    assert (before["windowEnd"], after["windowStart"]) == (first, last)
    assert before["input_token"] == after["input_token"] == 10
    assert (found["start_time"], found["end_time"]) == (early, late)


def test_fractions_and_offsets_of_times_are_exact(bare_service: Service) -> None:
    person = make_person(bare_service)
    did(person, *(record(ms("2026-03-01T10:00:00+00:00") + number, user_id=person.id) for number in range(3)))

    def tokens(start: str, end: str) -> int:
        found = report(person, start_time=start, end_time=end)["data"]
        return sum(row["input_token"] for row in found)

    assert tokens("2026-03-01T10:00:00Z", "2026-03-01T10:00:00.002Z") == 20
    assert tokens("2026-03-01T10:00:00.0000001Z", "2026-03-01T10:00:00.0020001Z") == 20
    assert tokens("2026-03-01t11:00:00.001+01:00", "2026-03-01 05:00:00.002-05:00") == 10
    assert tokens("2026-03-01T09:59:60Z", "2026-03-01T10:00:01z") == 30
    assert tokens("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59") == 30


def test_models_are_picked(bare_service: Service) -> None:
    person = make_person(bare_service)
    at = ms("2026-03-01T10:20:30+00:00")
    did(person, *(record(at, user_id=person.id, model=model) for model in ("a", "b", "c")))
    for picked, models in (("a", ["a"]), (["a", "c", "?"], ["a", "c"]), ([], ["a", "b", "c"]), (["é\0"], [])):
        rows = report(person, end_time=END, group_by=["model"], filter_group_by={"model": picked})["data"]
        assert [row["groupBy"]["model"] for row in rows] == models
    (row,) = report(person, end_time=END, filter_group_by={"model": ["a", "b"]})["data"]
    assert (row["groupBy"], row["input_token"]) == ({}, 20)
    absent: dict[str, Any] = {
        "window_size": None,
        "window_timezone": None,
        "group_by": None,
        "filter_group_by": None,
    }
    assert report(person, end_time=END, **absent)["data"][0]["input_token"] == 30


def test_nobody_elses_tokens_are_reported(bare_service: Service) -> None:
    person, other = make_person(bare_service), make_person(bare_service)
    did(person, record(ms("2026-03-01T10:20:30+00:00"), user_id=person.id))
    assert report(other, end_time=END)["data"] == []


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_time", None),
        ("start_time", 1_700_000_000),
        ("start_time", ""),
        ("start_time", "2026-03-01"),
        ("start_time", "2026-03-01T00:00:00"),
        ("start_time", "2026-03-01T00:00:00+0100"),
        ("start_time", "2026-02-30T00:00:00Z"),
        ("start_time", "0000-01-01T00:00:00Z"),
        ("start_time", "2026-03-01T24:00:00Z"),
        ("start_time", "2026-03-01T00:00:00+24:00"),
        ("start_time", "2026-03-01T00:00:00+00:60"),
        ("start_time", "２０２６-03-01T00:00:00Z"),
        ("start_time", "2026-03-01T00:00:00Z\n"),
        ("start_time", "2026-03-01T00:00:00.Z"),
        ("start_time", "2026-03-01T00:00:00." + "1" * 100_000 + "Z"),
        ("end_time", "tomorrow"),
        ("end_time", {}),
        ("window_size", "WEEK"),
        ("window_size", "day"),
        ("window_size", 1),
        ("window_timezone", ""),
        ("window_timezone", "Europe/Atlantis"),
        ("window_timezone", "../../../etc/passwd"),
        ("window_timezone", "UTC\0"),
        ("window_timezone", 0),
        ("group_by", "model"),
        ("group_by", ["user_id"]),
        ("group_by", [["model"]]),
        ("filter_group_by", ["a"]),
        ("filter_group_by", {"user": ["a"]}),
        ("filter_group_by", {"model": [1]}),
        ("filter_group_by", {"model": {}}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_422(bare_service: Service, mount: str, field: str, value: Any) -> None:
    with bare_service.http as http:
        answer = http.post(f"{mount}/usage/completions", json={"start_time": START, field: value})
    assert answer.status_code == 422, answer.text
    errors = answer.json()["detail"]
    assert errors
    assert all(error["loc"][:2] == ["body", field] for error in errors)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"{", b'"text"', b'{"start_time": "\xff"}', b"[" * 100_000]
)
def test_a_body_without_its_fields_is_422(bare_service: Service, body: bytes) -> None:
    with bare_service.http as http:
        for mount in MOUNTS:
            answer = http.post(
                f"{mount}/usage/completions", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 422, answer.text


def test_an_end_that_is_not_after_the_start_is_400(bare_service: Service) -> None:
    person = make_person(bare_service)
    assert ask(person, end_time=START).status_code == 400
    assert ask(person, end_time="2026-03-01T01:00:00+01:00").status_code == 400
    assert ask(person, end_time="2026-02-28T23:00:00Z").status_code == 400
    assert ask(person, start_time="9999-12-31T23:59:59Z").status_code == 400


def test_a_key_is_needed(bare_service: Service) -> None:
    for mount in MOUNTS:
        url = f"{bare_service.base_url}{mount}/usage/completions"
        assert httpx.post(url, json={"start_time": START}, trust_env=False).status_code == 401


def chat(person: Person, **fields: Any) -> dict[str, int]:
    """Return the usage that a chat's answer or stream says."""
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 9,
        **fields,
    }
    with person.http as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        usage: dict[str, int] = answer.json()["usage"]
        return usage
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    last: dict[str, int] = json.loads(events[-2])["usage"]
    return last


def test_the_report_is_the_sum_of_what_answers_said(service: Service) -> None:
    person = make_person(service)
    start = datetime.now(UTC).isoformat()
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    said = [chat(person), chat(person, n=3), chat(person, **streamed), chat(person, n=2, **streamed)]
    with person.http as http:
        body = {"model": CHAT, "prompt": ["One", "Two, three"], "max_tokens": 4}
        said.append(http.post("/v1/completions", json=body).json()["usage"])
        said.append(http.post("/compactifai/v1/completions", json={**body, "prompt": "One"}).json()["usage"])
        # Neither of these counts.
        assert http.post("/v1/embeddings", json={"model": EMBEDDING, "input": "One"}).status_code == 200
        assert http.post("/v1/completions", json={**body, "max_tokens": -1}).status_code == 400
    rows = report(person, start_time=start)["data"]
    assert sum(row["input_token"] for row in rows) == sum(usage["prompt_tokens"] for usage in said)
    assert sum(row["output_token"] for row in rows) == sum(usage["completion_tokens"] for usage in said)
    grouped = report(person, start_time=start, group_by=["model"], window_size="MINUTE")["data"]
    assert {row["groupBy"]["model"] for row in grouped} == {CHAT}
    assert sum(row["input_token"] for row in grouped) == sum(usage["prompt_tokens"] for usage in said)


def test_a_cancelled_stream_counts_what_was_sent(service: Service) -> None:
    person = make_person(service)
    start = datetime.now(UTC).isoformat()
    prompt = chat(person, max_tokens=1)
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    seen = 0
    with person.http as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line:
                seen = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
            if seen >= 5:
                break
    deadline = time.monotonic() + 20
    rows: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        rows = report(person, start_time=start)["data"]
        # One row, or two where the day has ended meanwhile.
        if sum(row["input_token"] for row in rows) == 2 * prompt["prompt_tokens"]:
            break
        time.sleep(0.05)
    assert sum(row["input_token"] for row in rows) == 2 * prompt["prompt_tokens"]
    assert seen <= sum(row["output_token"] for row in rows) - prompt["completion_tokens"] < 400
