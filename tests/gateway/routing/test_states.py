"""Which provider takes a request: balancing, quality of service, waiting by priority, and the breaker's part."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import Settings
from appliance.errors import OverloadedError
from appliance.gateway.errors import ProviderBusyError, UpstreamUnavailableError
from appliance.gateway.routing.records import Provider, Router
from appliance.gateway.routing.samples import percentile_95
from appliance.gateway.routing.states import Outcome, ProviderStates
from tests.gateway.routing.sample import Clock, provider, router


def make_states(retries: int = 3, countdown: float = 0.05) -> tuple[ProviderStates, Clock]:
    clock = Clock()
    chosen = Settings(routing_max_retries=retries, routing_retry_countdown=countdown)
    return ProviderStates(chosen, clock), clock


def outcome(**fields: Any) -> Outcome:
    values: dict[str, Any] = {"failed": False, "sampled": True, "latency": 1.0, "ttft": None}
    return Outcome(**{**values, "completion_tokens": 10, **fields})


async def run(states: ProviderStates, at: Provider, **fields: Any) -> None:
    """Let a request end there."""
    assert await states.acquire(router(at), set(), 0) is at
    states.ended(at, outcome(**fields))


async def acquired(states: ProviderStates, of: Router, *tried: int, priority: int = 0) -> int:
    chosen = await states.acquire(of, set(tried), priority)
    assert chosen is not None
    return chosen.id


def break_down(states: ProviderStates, broken: Provider) -> None:
    for _ in range(3):
        states.probed(broken, reached=False)


async def test_shuffle_is_uniform() -> None:
    states, _ = make_states()
    three = router(provider(1), provider(2), provider(3))
    counts = Counter([await acquired(states, three) for _ in range(3000)])
    assert set(counts) == {1, 2, 3}
    assert all(850 < count < 1150 for count in counts.values())


async def test_none_is_left_when_all_were_tried() -> None:
    states, _ = make_states()
    two = router(provider(1), provider(2))
    assert await acquired(states, two, 1) == 2
    assert await states.acquire(two, {1, 2}, 0) is None
    assert await states.acquire(router(), set(), 0) is None


@pytest.mark.parametrize(
    ("count", "place"), [(1, 1), (2, 2), (19, 19), (20, 19), (21, 20), (40, 38), (100, 95), (101, 96)]
)
def test_the_95th_percentile_is_the_value_at_its_place(count: int, place: int) -> None:
    assert percentile_95(iter(float(n) for n in range(count, 0, -1))) == place


async def test_least_busy_takes_the_lowest_percentile_and_no_sample_is_infinity() -> None:
    states, clock = make_states()
    slow, fast, new = provider(1), provider(2), provider(3)
    balanced = router(slow, fast, new, load_balancing_strategy="least_busy")
    await run(states, slow, ttft=0.5)
    await run(states, slow, ttft=0.01)
    await run(states, fast, ttft=0.2)
    assert {await acquired(states, balanced) for _ in range(50)} == {2}
    assert {await acquired(states, balanced, 2) for _ in range(50)} == {1}
    clock.now += 120
    assert {await acquired(states, balanced) for _ in range(200)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("metric", "limit", "good", "bad"),
    [
        ("ttft", 100, {"ttft": 0.1}, {"ttft": 0.101}),
        ("latency", 1000, {"latency": 1.0}, {"latency": 1.001}),
        ("performance", 10, {"latency": 1.0}, {"latency": 1.01}),
    ],
)
async def test_a_provider_beyond_its_limit_is_skipped_until_its_samples_are_old(
    metric: Any, limit: float, good: dict[str, float], bad: dict[str, float]
) -> None:
    states, clock = make_states(retries=0)
    held = provider(1, qos_metric=metric, qos_limit=limit)
    two = router(held, provider(2))
    assert {await acquired(states, two) for _ in range(50)} == {1, 2}  # no sample passes
    await run(states, held, **good)
    assert {await acquired(states, two) for _ in range(50)} == {1, 2}
    clock.now += 121
    await run(states, held, **bad)
    assert {await acquired(states, two) for _ in range(50)} == {2}
    with pytest.raises(ProviderBusyError):
        await states.acquire(router(held), set(), 0)
    clock.now += 120
    assert {await acquired(states, two) for _ in range(50)} == {1, 2}


async def test_inflight_holds_what_is_more_than_the_limit() -> None:
    states, _ = make_states(retries=0)
    held = provider(1, qos_metric="inflight", qos_limit=2)
    for _ in range(3):  # held when more than two are in flight
        assert await acquired(states, router(held)) == 1
    with pytest.raises(ProviderBusyError, match="Model is too busy after 0 seconds"):
        await states.acquire(router(held), set(), 0)
    states.ended(held, outcome())
    assert await acquired(states, router(held)) == 1
    assert states.snapshot()[1].in_flight == 3


async def test_failures_and_refused_requests_are_no_samples() -> None:
    states, _ = make_states()
    await run(states, provider(1), sampled=False)
    await run(states, provider(1), failed=True, sampled=False)
    await run(states, provider(1), completion_tokens=0, ttft=None)
    shown = states.snapshot()[1]
    assert (shown.samples, shown.latency, shown.ttft, shown.tokens_per_second) == (1, 1.0, None, None)


async def test_the_error_says_how_long_the_request_waited() -> None:
    states, clock = make_states(retries=2, countdown=0.05)
    held = router(provider(1, qos_metric="inflight", qos_limit=0))
    await acquired(states, held)
    waiting = asyncio.create_task(states.acquire(held, set(), 0))
    await asyncio.sleep(0)
    clock.now += 1.2
    with pytest.raises(ProviderBusyError, match="Model is too busy after 1 seconds") as caught:
        await waiting
    assert (caught.value.status, caught.value.retry_after) == (503, 10)
    assert states.waiting() == {}


async def test_a_freed_place_goes_to_the_highest_priority_then_to_the_first_at_once() -> None:
    states, _ = make_states(countdown=30)
    held = provider(1, qos_metric="inflight", qos_limit=0)
    await acquired(states, router(held))
    order: list[str] = []

    async def ask(name: str, priority: int) -> None:
        await states.acquire(router(held), set(), priority)
        order.append(name)

    tasks = []
    for name, priority in (("low", 0), ("first", 3), ("second", 3), ("urgent", 4)):
        tasks.append(asyncio.create_task(ask(name, priority)))
        await asyncio.sleep(0)
    assert states.waiting() == {1: 4}
    for _ in range(4):
        states.ended(held, outcome())
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert order == ["urgent", "first", "second", "low"]
    assert states.snapshot()[1].in_flight == 1


async def test_who_comes_later_does_not_overtake_who_waits() -> None:
    states, _ = make_states(countdown=30)
    held = provider(1, qos_metric="inflight", qos_limit=0)
    await acquired(states, router(held))
    waiting = asyncio.create_task(states.acquire(router(held), set(), 1))
    await asyncio.sleep(0)
    states.ended(held, outcome())
    late = asyncio.create_task(states.acquire(router(held), set(), 1))
    await asyncio.sleep(0.01)
    assert waiting.done()
    assert not late.done()
    late.cancel()


async def test_waiters_of_one_router_do_not_hold_up_another() -> None:
    states, _ = make_states(countdown=30)
    held = router(provider(1, qos_metric="inflight", qos_limit=0))
    free = router(provider(2, router_id=2), number=2)
    await acquired(states, held)
    waiting = asyncio.create_task(states.acquire(held, set(), 4))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(acquired(states, free), 1) == 2
    waiting.cancel()


async def test_a_waiter_who_tried_the_free_provider_lets_others_have_it() -> None:
    states, _ = make_states(countdown=30)
    first, second = (provider(n, qos_metric="inflight", qos_limit=0) for n in (1, 2))
    two = router(first, second)
    assert {await acquired(states, two), await acquired(states, two)} == {1, 2}
    picky = asyncio.create_task(states.acquire(two, {1}, 4))
    other = asyncio.create_task(states.acquire(two, set(), 0))
    await asyncio.sleep(0)
    states.ended(first, outcome())
    assert await asyncio.wait_for(other, 1) == first
    assert not picky.done()
    states.ended(second, outcome())
    assert await asyncio.wait_for(picky, 1) == second


async def test_a_cancelled_waiter_takes_nothing_with_it() -> None:
    states, _ = make_states(countdown=30)
    held = provider(1, qos_metric="inflight", qos_limit=0)
    await acquired(states, router(held))
    gone = asyncio.create_task(states.acquire(router(held), set(), 0))
    late = asyncio.create_task(states.acquire(router(held), set(), 0))
    await asyncio.sleep(0)
    states.ended(held, outcome())  # the place goes to the one that is cancelled in the same moment
    gone.cancel()
    assert await asyncio.wait_for(late, 1) == held
    states.ended(held, outcome())
    assert states.snapshot()[1].in_flight == 0
    assert states.waiting() == {}
    assert gone.cancelled() or await asyncio.gather(gone, return_exceptions=True)


async def test_a_broken_server_is_skipped_and_tried_again_by_one_request() -> None:
    states, clock = make_states()
    broken, sound = provider(1), provider(2)
    two = router(broken, sound)
    for _ in range(3):
        assert await acquired(states, two, 2) == 1
        states.failed(broken, UpstreamUnavailableError("it broke"))
    assert not states.snapshot()[1].healthy
    assert {await acquired(states, two) for _ in range(50)} == {2}
    clock.now += 5
    assert [await acquired(states, two) for _ in range(5)] == [1, 2, 2, 2, 2]
    states.failed(broken, UpstreamUnavailableError("still"))
    assert {await acquired(states, two) for _ in range(20)} == {2}
    clock.now += 10
    assert await acquired(states, two) == 1
    states.ended(broken, outcome())
    assert states.healthy(broken)
    assert {await acquired(states, two) for _ in range(50)} == {1, 2}


async def test_a_broken_server_is_the_last_resort() -> None:
    states, _ = make_states()
    broken, sound = provider(1), provider(2)
    break_down(states, broken)
    assert await acquired(states, router(broken)) == 1
    assert await acquired(states, router(broken, sound), 2) == 1


async def test_full_queues_and_engines_of_this_box_break_nothing() -> None:
    states, _ = make_states()
    local, remote = provider(1, type="local", url=None), provider(2)
    for _ in range(5):
        await acquired(states, router(local))
        states.failed(local, OverloadedError("the queue is full"))
        await run(states, local, failed=True, sampled=False)
        await acquired(states, router(remote))
        states.failed(remote, ProviderBusyError("it said 429"))
    assert states.healthy(local)
    assert states.healthy(remote)


async def test_answers_that_break_off_count_as_failures() -> None:
    states, _ = make_states()
    for _ in range(3):
        await run(states, provider(1), failed=True, sampled=False)
    assert not states.healthy(provider(1))


async def test_what_was_removed_is_forgotten_unless_it_is_in_use() -> None:
    states, _ = make_states()
    await acquired(states, router(provider(1)))
    await run(states, provider(2))
    await run(states, provider(3))
    states.keep({3})
    assert set(states.snapshot()) == {1, 3}
    states.ended(provider(1), outcome())
    states.keep({3})
    assert set(states.snapshot()) == {3}


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(0, 3),
    steps=st.lists(st.sampled_from(["ask", "end", "fail", "cancel"]), max_size=60),
)
def test_places_never_leak(limit: int, steps: list[str]) -> None:
    """Whatever requests do, all places are free in the end, and never more taken than allowed."""

    async def go() -> None:
        states, _ = make_states(countdown=30)
        held = provider(1, qos_metric="inflight", qos_limit=limit)
        asked: list[asyncio.Task[Provider | None]] = []

        def end(failed: bool) -> None:
            for task in asked:
                if task.done() and not task.cancelled():
                    asked.remove(task)
                    if failed:
                        states.failed(held, OverloadedError("no"))
                    else:
                        states.ended(held, outcome())
                    return

        for step in steps:
            if step == "ask":
                asked.append(asyncio.create_task(states.acquire(router(held), set(), len(asked) % 3)))
            elif step == "cancel":
                for task in asked:
                    if not task.done():
                        asked.remove(task)
                        task.cancel()
                        break
            else:
                end(step == "fail")
            if len(asked) % 2:
                await asyncio.sleep(0)
            snapshot = states.snapshot().get(1)
            assert snapshot is None or snapshot.in_flight <= limit + 1
        for _ in range(len(asked) * 3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            end(failed=False)
        await asyncio.sleep(0)
        assert asked == []
        assert states.waiting() == {}
        assert all(each.in_flight == 0 for each in states.snapshot().values())

    asyncio.run(go())
