"""The breaker: opened by failures in a row, tried after pauses that grow, closed by a success."""

from __future__ import annotations

from appliance.gateway.routing.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(now)
    return breaker


def test_the_third_failure_in_a_row_opens_it() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(0.0)
    assert not breaker.closed


def test_one_request_at_a_time_tries_it_after_the_pause() -> None:
    breaker = opened()
    assert not breaker.due(FIRST_PAUSE_SECONDS - 0.1)
    assert breaker.due(FIRST_PAUSE_SECONDS)
    breaker.try_now()
    assert not breaker.due(FIRST_PAUSE_SECONDS)
    breaker.tried()  # it ended without telling anything
    assert breaker.due(FIRST_PAUSE_SECONDS)
    breaker.succeeded()
    assert breaker.closed


def test_the_pause_grows_with_each_trial_that_fails_up_to_a_minute() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(7):
        pause = next(seconds for seconds in range(1, 100) if breaker.due(now + seconds))
        pauses.append(pause)
        now += pause
        breaker.failed(now)
    assert pauses == [5, 10, 20, 40, 60, 60, 60]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_requests_that_were_on_their_way_do_not_make_the_pause_longer() -> None:
    breaker = opened()
    for _ in range(50):
        breaker.failed(1.0)
    assert breaker.due(FIRST_PAUSE_SECONDS)


def test_a_server_that_can_be_reached_may_be_tried_at_once() -> None:
    breaker = opened()
    breaker.reached(1.0)
    assert not breaker.closed
    assert breaker.due(1.0)
