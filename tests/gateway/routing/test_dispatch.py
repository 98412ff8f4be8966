"""A call's way over providers: the next one on 503, and nothing left in flight however it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.accounts.keys import Account
from appliance.config import Settings
from appliance.errors import InvalidRequestError, OverloadedError
from appliance.gateway import call as call_module
from appliance.gateway.budget import Ledger
from appliance.gateway.call import CallContext, ModelCall
from appliance.gateway.errors import ProviderBusyError, UpstreamUnavailableError
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.routing.records import UNLIMITED, Provider, Router
from appliance.gateway.routing.states import ProviderStates
from appliance.gateway.usage.record import UsageRecord
from tests.gateway.routing.sample import Clock, provider, router

ACCOUNT = Account(
    user_id=1,
    key_id=1,
    kind="key",
    key_name="test",
    email="user@example.org",
    name=None,
    role_id=1,
    organization_id=None,
    permissions=frozenset(),
    budget=None,
    priority=0,
    expires_at=None,
)


class Bench:
    """Calls over one set of states, and the records that they leave."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.states = ProviderStates(Settings(routing_max_retries=1, routing_retry_countdown=0.05))
        self.context = CallContext(
            limiter=Limiter(),
            ledger=Ledger(),
            states=self.states,
            budget=lambda _: None,
            record=lambda record, _: self.records.append(record),
        )

    def call(self, of: Router) -> ModelCall:
        return ModelCall(
            self.context, ACCOUNT, of, UNLIMITED, endpoint="/v1/chat/completions", method="POST", priority=0
        )

    def in_flight(self) -> int:
        return sum(each.in_flight for each in self.states.snapshot().values())


TWO = router(provider(1), provider(2))


async def test_the_next_provider_is_tried_on_503_and_named_in_the_record() -> None:
    bench = Bench()
    call = bench.call(TWO)
    asked: list[int] = []

    async def attempt(chosen: Provider) -> int:
        asked.append(chosen.id)
        assert bench.in_flight() == 1
        if len(asked) == 1:
            raise UpstreamUnavailableError("it broke")
        return chosen.id

    answered = await call.dispatch(attempt)
    call.close(200)
    assert sorted(asked) == [1, 2]
    assert [record.provider_id for record in bench.records] == [answered] == asked[1:]
    assert bench.in_flight() == 0


async def test_when_all_fail_the_last_one_says_why_and_is_named_in_the_record() -> None:
    bench = Bench()
    call = bench.call(TWO)
    asked: list[int] = []

    async def attempt(chosen: Provider) -> None:
        asked.append(chosen.id)
        raise UpstreamUnavailableError(f"provider {chosen.id} broke")

    with pytest.raises(UpstreamUnavailableError) as caught:
        await call.dispatch(attempt)
    assert bench.in_flight() == 0
    call.close(503)
    assert caught.value.message == f"provider {asked[-1]} broke"
    assert [(record.provider_id, record.status) for record in bench.records] == [(asked[-1], 503)]
    assert bench.in_flight() == 0


@pytest.mark.parametrize("error", [InvalidRequestError("no"), RuntimeError("a bug"), KeyError("x")])
async def test_other_errors_try_nobody_else_and_leave_nothing_in_flight(error: Exception) -> None:
    bench = Bench()
    call = bench.call(TWO)

    async def attempt(_: Provider) -> None:
        raise error

    with pytest.raises(type(error)):
        await call.dispatch(attempt)
    assert bench.in_flight() == 1
    call.close(400)
    call.close(400)
    assert bench.in_flight() == 0
    assert len(bench.records) == 1


async def test_a_cancelled_request_leaves_nothing_in_flight() -> None:
    bench = Bench()
    call = bench.call(TWO)

    async def attempt(_: Provider) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(call.dispatch(attempt))
    await asyncio.sleep(0)
    assert bench.in_flight() == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    call.close(499)
    assert bench.in_flight() == 0


async def test_a_request_that_no_provider_took_leaves_no_record() -> None:
    bench = Bench()
    held = router(provider(1, qos_metric="inflight", qos_limit=0))
    first, second = bench.call(held), bench.call(held)

    async def attempt(chosen: Provider) -> int:
        return chosen.id

    await first.dispatch(attempt)
    with pytest.raises(ProviderBusyError):
        await second.dispatch(attempt)
    second.close(503)
    assert (bench.in_flight(), bench.records) == (1, [])
    first.close(200)
    assert (bench.in_flight(), len(bench.records)) == (0, 1)


async def test_records_that_cannot_be_kept_do_not_keep_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    call = bench.call(TWO)

    async def attempt(_: Provider) -> None:
        return None

    await call.dispatch(attempt)

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(call, "_record", fail)
    with pytest.raises(MemoryError):
        call.close(200)
    assert bench.in_flight() == 0


async def test_a_provider_is_not_slower_for_the_time_spent_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, clock = Bench(), Clock()
    monkeypatch.setattr(call_module, "time", SimpleNamespace(monotonic=clock))
    call = bench.call(TWO)
    asked: list[int] = []

    async def attempt(chosen: Provider) -> None:
        asked.append(chosen.id)
        if len(asked) == 1:
            clock.now += 30
            raise OverloadedError("a full queue")
        clock.now += 2
        call.first_token()

    await call.dispatch(attempt)
    clock.now += 3
    call.completion_tokens = 5
    call.close(200)
    measured = bench.states.snapshot()[asked[1]]
    assert measured.samples == 1
    assert (measured.ttft, measured.latency) == (2, 5)
    assert (bench.records[0].ttft_ms, bench.records[0].latency_ms) == (32_000, 35_000)
    assert bench.states.snapshot()[asked[0]].samples == 0
