"""Limits: never more in any window than the limit, and not much less; what is refused says when to come back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.gateway.errors import LimitExceededError
from appliance.gateway.limits.clock import SteadyClock
from appliance.gateway.limits.limiter import Limiter, LimitHit, duration
from appliance.gateway.routing.records import UNLIMITED, Limits

USER, ROUTER = 7, 3
DAY = 86400
# A moment in the midst of a second and of a minute.
START = 1_700_000_000.25


class Clock:
    """A clock that the test moves."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def limits(
    rpm: int | None = None, rpd: int | None = None, tpm: int | None = None, tpd: int | None = None
) -> Limits:
    return Limits(rpm, rpd, tpm, tpd)


def refusal(ask: Callable[[], None]) -> LimitExceededError:
    with pytest.raises(LimitExceededError) as caught:
        ask()
    return caught.value


def admitted(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except LimitExceededError:
        return False
    return True


def test_requests_beyond_the_minute_are_refused_in_the_contracts_words(limiter: Limiter) -> None:
    for _ in range(3):
        limiter.admit_request(USER, ROUTER, limits(rpm=3))

    error = refusal(lambda: limiter.admit_request(USER, ROUTER, limits(rpm=3)))

    assert error.message == "3 requests per minute exceeded (remaining: 0)."
    assert (error.status, error.kind) == (429, "rpm")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("rpm", "5 requests per minute exceeded (remaining: 0)."),
        ("rpd", "5 requests per day exceeded (remaining: 0)."),
        ("tpm", "5 input tokens per minute exceeded (remaining: 2)."),
        ("tpd", "5 input tokens per day exceeded (remaining: 2)."),
    ],
)
def test_every_kind_has_its_text(limiter: Limiter, kind: str, text: str) -> None:
    only = limits(**{kind: 5})
    limiter.admit_tokens(USER, ROUTER, only, 3)
    for _ in range(5):
        if kind.startswith("r"):
            limiter.admit_request(USER, ROUTER, only)

    error = refusal(
        lambda: (
            limiter.admit_request(USER, ROUTER, only)
            if kind.startswith("r")
            else limiter.admit_tokens(USER, ROUTER, only, 3)
        )
    )

    assert (error.kind, error.message) == (kind, text)


def test_of_several_limits_the_minute_comes_first(limiter: Limiter) -> None:
    both = limits(rpm=1, rpd=1, tpm=1, tpd=1)
    limiter.admit_request(USER, ROUTER, both)
    limiter.admit_tokens(USER, ROUTER, both, 1)

    assert refusal(lambda: limiter.admit_request(USER, ROUTER, both)).kind == "rpm"
    assert refusal(lambda: limiter.admit_tokens(USER, ROUTER, both, 1)).kind == "tpm"


def test_a_refused_request_is_not_counted(limiter: Limiter, clock: Clock) -> None:
    only = limits(rpm=1, rpd=2)
    limiter.admit_request(USER, ROUTER, only)
    for _ in range(100):
        assert not admitted(lambda: limiter.admit_request(USER, ROUTER, only))
    clock.now += 61

    limiter.admit_request(USER, ROUTER, only)

    assert refusal(lambda: limiter.admit_request(USER, ROUTER, limits(rpd=2))).kind == "rpd"


def test_refused_tokens_are_not_counted_but_their_request_stays(limiter: Limiter) -> None:
    only = limits(rpm=2, tpm=10)
    limiter.admit_request(USER, ROUTER, only)
    assert not admitted(lambda: limiter.admit_tokens(USER, ROUTER, only, 11))

    assert limiter.headers(USER, ROUTER, only)["x-ratelimit-remaining-requests"] == "1"
    assert limiter.headers(USER, ROUTER, only)["x-ratelimit-remaining-tokens"] == "10"
    limiter.admit_tokens(USER, ROUTER, only, 10)


def test_users_and_routers_are_counted_apart(limiter: Limiter) -> None:
    only = limits(rpm=1)
    limiter.admit_request(1, 1, only)
    limiter.admit_request(1, 2, only)
    limiter.admit_request(2, 1, only)

    assert not admitted(lambda: limiter.admit_request(1, 1, only))


def test_a_limit_that_is_raised_counts_at_once(limiter: Limiter) -> None:
    limiter.admit_tokens(USER, ROUTER, limits(tpd=10), 5)
    assert not admitted(lambda: limiter.admit_tokens(USER, ROUTER, limits(tpd=10), 10))
    limiter.admit_tokens(USER, ROUTER, limits(tpd=50), 10)
    assert not admitted(lambda: limiter.admit_tokens(USER, ROUTER, limits(tpd=50), 50))


@pytest.mark.parametrize(("kind", "bucket", "window"), [("rpm", 1, 60), ("rpd", 60, DAY)])
def test_what_is_refused_succeeds_after_the_time_it_is_told(
    limiter: Limiter, clock: Clock, kind: str, bucket: int, window: int
) -> None:
    only = limits(**{kind: 2})
    limiter.admit_request(USER, ROUTER, only)
    clock.now += window / 2
    limiter.admit_request(USER, ROUTER, only)

    error = refusal(lambda: limiter.admit_request(USER, ROUTER, only))
    assert error.retry_after is not None
    assert window / 2 <= error.retry_after <= window / 2 + bucket + 1

    clock.now += error.retry_after - 1.001
    assert not admitted(lambda: limiter.admit_request(USER, ROUTER, only))
    clock.now += 1.001
    limiter.admit_request(USER, ROUTER, only)


def test_tokens_wait_until_enough_of_them_have_left_the_window(limiter: Limiter, clock: Clock) -> None:
    only = limits(tpm=10)
    for _ in range(5):
        limiter.admit_tokens(USER, ROUTER, only, 2)
        clock.now += 5

    error = refusal(lambda: limiter.admit_tokens(USER, ROUTER, only, 5))

    # Three of the five hits have to go; the third was 15 seconds ago.
    assert error.retry_after == 46
    clock.now += 46
    limiter.admit_tokens(USER, ROUTER, only, 5)


@pytest.mark.parametrize(("kind", "window"), [("tpm", 60), ("tpd", DAY)])
def test_a_prompt_beyond_the_limit_itself_is_told_the_windows_length(
    limiter: Limiter, kind: str, window: int
) -> None:
    error = refusal(lambda: limiter.admit_tokens(USER, ROUTER, limits(**{kind: 10}), 11))

    assert error.retry_after == window
    assert error.message.endswith("(remaining: 10).")


hits = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=80)


@settings(max_examples=150, deadline=None)
@given(hits=hits, limit=st.integers(1, 20), start=st.floats(0, 1), scale=st.sampled_from([1, 60]))
def test_no_window_ever_lets_more_through_and_each_lets_what_is_a_bucket_later(
    hits: list[tuple[float, int]], limit: int, start: float, scale: int
) -> None:
    window = 60 * scale if scale == 1 else DAY
    factor = 1.0 if scale == 1 else DAY / 60
    clock = Clock(START + start * scale)
    limiter = Limiter(clock)
    only = limits(tpm=limit) if scale == 1 else limits(tpd=limit)
    passed: list[tuple[float, int]] = []
    for pause, tokens in hits:
        clock.now += pause * factor
        ok = admitted(lambda tokens=tokens: limiter.admit_tokens(USER, ROUTER, only, tokens))  # type: ignore[misc]
        within = sum(n for at, n in passed if at > clock.now - window)
        just_before = sum(n for at, n in passed if at > clock.now - window - scale)
        if ok:
            assert within + tokens <= limit
            passed.append((clock.now, tokens))
        else:
            assert just_before + tokens > limit


@settings(max_examples=60, deadline=None)
@given(hits=hits, limit=st.integers(1, 12))
def test_retry_after_is_the_first_whole_second_that_works(hits: list[tuple[float, int]], limit: int) -> None:
    clock = Clock()
    limiter = Limiter(clock)
    only = limits(tpm=limit)
    for pause, tokens in hits:
        clock.now += pause

        def ask(tokens: int = tokens) -> None:
            limiter.admit_tokens(USER, ROUTER, only, tokens)

        if admitted(ask):
            continue
        seconds = refusal(ask).retry_after
        assert seconds is not None
        if tokens > limit:
            assert seconds == 60
            continue
        now = clock.now
        clock.now = now + seconds - 1.001
        assert seconds == 1 or not admitted(ask)
        clock.now = now + seconds
        ask()


def test_headers_name_the_window_nearest_exhaustion(limiter: Limiter, clock: Clock) -> None:
    only = limits(rpm=10, rpd=12, tpm=100, tpd=1000)
    limiter.admit_request(USER, ROUTER, only)
    limiter.admit_tokens(USER, ROUTER, only, 30)
    first = limiter.headers(USER, ROUTER, only)
    clock.now += 61
    for _ in range(2):
        limiter.admit_request(USER, ROUTER, only)

    assert first == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "1m1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "1m1s",
    }
    later = limiter.headers(USER, ROUTER, only)
    # 9 of 12 are less than 8 of 10 for the day; 970 of 1000 tokens are less than 100 of 100.
    assert later["x-ratelimit-limit-requests"] == "12"
    assert later["x-ratelimit-remaining-requests"] == "9"
    assert later["x-ratelimit-limit-tokens"] == "1000"
    assert later["x-ratelimit-remaining-tokens"] == "970"
    assert later["x-ratelimit-reset-tokens"].startswith("24h0m")


def test_headers_leave_out_what_is_unlimited(limiter: Limiter) -> None:
    limiter.admit_request(USER, ROUTER, UNLIMITED)

    assert limiter.headers(USER, ROUTER, UNLIMITED) == {}
    assert set(limiter.headers(USER, ROUTER, limits(tpd=5))) == {
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    }


def test_headers_of_a_stranger_are_whole_and_leave_no_trace(limiter: Limiter) -> None:
    for user in range(1000):
        assert limiter.headers(user, ROUTER, limits(rpm=4))["x-ratelimit-remaining-requests"] == "4"
        assert limiter.headers(user, ROUTER, limits(rpm=4))["x-ratelimit-reset-requests"] == "0s"

    assert not limiter._counters


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0004, "1ms"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.2, "2s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3599.5, "1h0m0s"),
        (DAY, "24h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_changed_is_told_once_with_the_minutes_sums(limiter: Limiter, clock: Clock) -> None:
    limiter.admit_request(USER, ROUTER, UNLIMITED)
    limiter.admit_tokens(USER, ROUTER, UNLIMITED, 9)
    minute = int(clock.now // 60)
    assert limiter.changed() == [LimitHit(USER, ROUTER, minute, 1, 9)]
    assert limiter.changed() == []

    limiter.admit_request(USER, ROUTER, UNLIMITED)
    clock.now += 60
    limiter.admit_request(USER, ROUTER, UNLIMITED)

    assert limiter.changed() == [
        LimitHit(USER, ROUTER, minute, 2, 9),
        LimitHit(USER, ROUTER, minute + 1, 1, 0),
    ]


def test_a_restart_keeps_the_windows(clock: Clock) -> None:
    before = Limiter(clock)
    stored: dict[int, LimitHit] = {}
    for _ in range(30):
        before.admit_request(USER, ROUTER, UNLIMITED)
        stored |= {hit.minute: hit for hit in before.changed()}
        clock.now += 20
    clock.now -= 20

    after = Limiter(clock)
    after.load(list(stored.values()))

    assert not admitted(lambda: after.admit_request(USER, ROUTER, limits(rpd=30)))
    assert admitted(lambda: after.admit_request(USER, ROUTER, limits(rpd=31)))
    # Of the minute it is only known that they were in it, or in the one before.
    assert not admitted(lambda: after.admit_request(USER, ROUTER, limits(rpm=3)))
    assert after.changed()[0].requests == stored[int(clock.now // 60)].requests + 1
    clock.now += 121
    assert admitted(lambda: after.admit_request(USER, ROUTER, limits(rpm=1)))


def test_stored_minutes_of_the_future_count_as_now(clock: Clock, limiter: Limiter) -> None:
    minute = int(clock.now // 60)
    limiter.load([LimitHit(USER, ROUTER, minute + 500_000, 4, 40), LimitHit(USER, ROUTER, minute + 1, 1, 2)])

    assert limiter.headers(USER, ROUTER, limits(rpd=6))["x-ratelimit-remaining-requests"] == "1"
    clock.now += DAY + 61
    assert limiter.headers(USER, ROUTER, limits(rpd=6))["x-ratelimit-remaining-requests"] == "6"


def test_what_is_older_than_a_day_is_not_taken_up(clock: Clock, limiter: Limiter) -> None:
    limiter.load([LimitHit(USER, ROUTER, int(clock.now // 60) - 1442, 4, 40)])

    assert not limiter._counters


def test_idle_users_are_forgotten_after_a_day(clock: Clock, limiter: Limiter) -> None:
    for user in range(5000):
        limiter.admit_request(user, ROUTER, UNLIMITED)
    clock.now += DAY + 60
    limiter.admit_request(USER, ROUTER, UNLIMITED)
    clock.now += 1
    limiter.admit_request(USER, ROUTER, UNLIMITED)

    assert list(limiter._counters) == [(USER, ROUTER)]


def test_a_user_who_never_rests_takes_bounded_room(clock: Clock, limiter: Limiter) -> None:
    longest = 0
    for _ in range(20_000):
        limiter.admit_request(USER, ROUTER, UNLIMITED)
        counter = limiter._counters[USER, ROUTER]
        longest = max(longest, len(counter.day._array), len(counter.minute._array))
        clock.now += 30
    limiter.changed()

    assert longest <= 3 * 1441 * 2 + 3 * 64


def test_the_steady_clock_follows_the_time_and_ignores_its_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    assert abs(clock() - time.time()) < 1
    real = time.time()
    for jump in (-10 * DAY, 10 * DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: real + jump)
        first = clock()
        assert abs(first - real) < 5
        assert clock() >= first


def test_a_jump_of_the_clock_neither_frees_nor_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = Limiter()
    limiter.admit_request(USER, ROUTER, limits(rpm=2, rpd=2))
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real - 400 * DAY)
    limiter.admit_request(USER, ROUTER, limits(rpm=2, rpd=2))
    monkeypatch.setattr(time, "time", lambda: real + 400 * DAY)

    error = refusal(lambda: limiter.admit_request(USER, ROUTER, limits(rpm=2, rpd=2)))

    assert error.kind == "rpm"
    assert error.retry_after is not None
    assert error.retry_after <= 61
