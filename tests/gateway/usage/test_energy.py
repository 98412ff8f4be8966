"""Measured energy: the kernel's counters, and every call's share of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from appliance.accounts.keys import Account
from appliance.config import Settings
from appliance.errors import OverloadedError
from appliance.gateway.budget import Ledger
from appliance.gateway.call import CallContext, ModelCall
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.routing.records import UNLIMITED, Provider, Router
from appliance.gateway.routing.states import ProviderStates
from appliance.gateway.usage.energy import JOULES_PER_KWH, EnergyMeter, PackageCounters
from appliance.gateway.usage.record import UsageRecord
from appliance.gateway.usage.zones import FACTORS

RANGE = 1_000_000_000


def package(root: Path, folder: str, name: str = "package-0", energy: int = 0) -> Path:
    """Make one zone of a powercap tree and return its counter."""
    zone = root / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(name + "\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    counter = zone / "energy_uj"
    counter.write_text(f"{energy}\n")
    return counter


def found(root: Path) -> PackageCounters:
    counters = PackageCounters.find(root)
    assert counters is not None
    return counters


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metered() -> tuple[EnergyMeter, Hand]:
    clock = Hand()
    return EnergyMeter(clock=clock), clock


def joules(kwh: float | None) -> float:
    assert kwh is not None
    return kwh * JOULES_PER_KWH


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", energy=5_000_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", energy=7)
    package(tmp_path, "intel-rapl:0:0", "core")
    package(tmp_path, "intel-rapl:2", "psys")
    # The first package once more, by another way.
    twin = package(tmp_path, "intel-rapl-mmio:0", energy=1)
    counters = found(tmp_path)
    first.write_text("8000000")
    second.write_text("1000007")
    twin.write_text("9000000")
    assert counters.joules() == pytest.approx(4.0)
    assert counters.joules() == pytest.approx(4.0)


def test_a_counter_that_is_through_begins_again(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", energy=RANGE - 2_000_000)
    counters = found(tmp_path)
    counter.write_text("3000000")
    assert counters.joules() == pytest.approx(5.0)


def test_a_machine_without_counters_measures_nothing(tmp_path: Path) -> None:
    assert PackageCounters.find(tmp_path) is None
    assert PackageCounters.find(tmp_path / "absent") is None
    package(tmp_path, "intel-rapl:0").write_text("not a number")
    assert PackageCounters.find(tmp_path) is None
    meter = EnergyMeter(None)
    meter.start()
    share = meter.begin()
    share.end()
    assert share.kwh() is None
    meter.close()


def test_a_call_alone_takes_all_of_it() -> None:
    meter, clock = metered()
    share = meter.begin()
    meter.read(1000.0)
    clock.now += 2
    meter.read(1060.0)
    assert joules(share.kwh()) == pytest.approx(60)
    # Until the next reading it goes on as it did.
    clock.now += 1
    assert joules(share.kwh()) == pytest.approx(90)
    # And then becomes what it was.
    meter.read(1080.0)
    assert joules(share.kwh()) == pytest.approx(80)
    share.end()
    clock.now += 5
    meter.read(2000.0)
    assert joules(share.kwh()) == pytest.approx(80)


def test_calls_at_the_same_time_share_it() -> None:
    meter, clock = metered()
    first = meter.begin()
    meter.read(0.0)
    clock.now += 1
    meter.read(10.0)
    second = meter.begin()
    clock.now += 1
    meter.read(30.0)
    assert (joules(first.kwh()), joules(second.kwh())) == pytest.approx((20, 10))
    first.end()
    clock.now += 1
    meter.read(50.0)
    assert (joules(first.kwh()), joules(second.kwh())) == pytest.approx((20, 30))


def test_the_shares_of_many_calls_add_up_to_what_was_measured() -> None:
    meter, clock = metered()
    meter.read(0.0)
    background = meter.begin()
    shares, total = [background], 0.0
    meter.read(0.0)
    for step in range(200):
        shares.append(meter.begin())
        clock.now += 0.1
        total += 3 + step % 5
        meter.read(total)
        if step % 3:
            shares[-1].end()
    assert sum(joules(share.kwh()) for share in shares) == pytest.approx(total)


def test_what_is_taken_while_nothing_runs_is_nobodys() -> None:
    meter, clock = metered()
    share = meter.begin()
    meter.read(0.0)
    clock.now += 1
    meter.read(10.0)
    share.end()
    clock.now += 100
    meter.read(5000.0)
    later = meter.begin()
    meter.read(5000.0)
    clock.now += 1
    meter.read(5010.0)
    assert joules(later.kwh()) == pytest.approx(10)


def test_the_counters_are_read_while_calls_run(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0")
    meter = EnergyMeter(found(tmp_path), interval=0.01)
    meter.start()
    share = meter.begin()
    energy, reached, deadline = 0, 0.0, time.monotonic() + 30
    while reached < 20 and time.monotonic() < deadline:
        energy += 1_000_000
        # As a whole: the kernel's files are never half written either.
        new = tmp_path / "new"
        new.write_text(str(energy))
        new.replace(counter)
        time.sleep(0.01)
        # Looked at once: it is expected from the power before, and the next reading may bring it down a little.
        reached = (share.kwh() or 0.0) * JOULES_PER_KWH
    assert reached >= 20
    # A counter that can no longer be read ends the measuring, not the service.
    counter.unlink()
    while share.kwh() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert share.kwh() is None
    share.end()
    meter.close()


ACCOUNT = Account(1, 1, "key", "key", "a@example.org", None, 1, None, frozenset(), None, 0, None)


def provider(number: int, kind: str) -> Provider:
    return Provider(
        id=number,
        router_id=1,
        user_id=None,
        type=kind,  # type: ignore[arg-type]
        url=None,
        sealed_key=None,
        timeout=1,
        model_name="a",
        hosting_zone="FRA",
        total_params=8,
        active_params=8,
        qos_metric=None,
        qos_limit=None,
        max_context_length=None,
        vector_size=None,
        created_at=0,
        updated_at=None,
    )


def call_of(meter: EnergyMeter, records: list[UsageRecord], *providers: Provider) -> ModelCall:
    router = Router(
        id=1,
        name="a",
        aliases=(),
        type="text-generation",
        user_id=None,
        owner=None,
        load_balancing_strategy="shuffle",
        cost_prompt_tokens=0,
        cost_completion_tokens=0,
        providers=providers,
        created_at=0,
        updated_at=0,
    )
    context = CallContext(
        limiter=Limiter(),
        ledger=Ledger(),
        states=ProviderStates(Settings()),
        budget=lambda _: None,
        record=lambda record, _: records.append(record),
        energy=meter,
    )
    return ModelCall(
        context, ACCOUNT, router, UNLIMITED, endpoint="/v1/chat/completions", method="POST", priority=0
    )


async def nothing(_: Provider) -> None:
    return


def test_a_call_on_this_machine_shows_and_records_what_was_measured() -> None:
    meter, clock = metered()
    records: list[UsageRecord] = []
    call = call_of(meter, records, provider(1, "local"))
    asyncio.run(call.dispatch(nothing))
    meter.read(0.0)
    clock.now += 1
    meter.read(36.0)
    call.prompt_tokens, call.completion_tokens = 10, 90
    burned = call.usage().footprint
    assert burned.measured
    assert burned.kwh_min == burned.kwh_max == pytest.approx(36 / JOULES_PER_KWH)
    # And what making the hardware emitted, which no counter knows.
    assert burned.kgco2eq_min > burned.kwh_min * FACTORS["FRA"]
    clock.now += 1
    call.close(200)
    assert records[0].footprint == burned
    # It runs no longer: the next one does not share with it.
    alone = meter.begin()
    meter.read(100.0)
    clock.now += 1
    meter.read(110.0)
    assert joules(alone.kwh()) == pytest.approx(10)


def test_a_call_elsewhere_is_estimated() -> None:
    meter, clock = metered()
    records: list[UsageRecord] = []
    call = call_of(meter, records, provider(1, "vllm"))
    asyncio.run(call.dispatch(nothing))
    mine = meter.begin()
    meter.read(0.0)
    clock.now += 1
    meter.read(10.0)
    call.prompt_tokens = 100
    assert not call.usage().footprint.measured
    assert call.usage().footprint.kwh_max > call.usage().footprint.kwh_min > 0
    assert joules(mine.kwh()) == pytest.approx(10)
    call.close(200)
    assert not records[0].footprint.measured


def test_a_call_that_moved_on_to_another_provider_no_longer_counts_here() -> None:
    meter, clock = metered()
    call = call_of(meter, [], provider(1, "local"), provider(2, "vllm"))

    async def refuse_local(chosen: Provider) -> None:
        if chosen.is_local:
            raise OverloadedError("busy")

    asyncio.run(call.dispatch(refuse_local))
    mine = meter.begin()
    meter.read(0.0)
    clock.now += 1
    meter.read(10.0)
    assert joules(mine.kwh()) == pytest.approx(10)
    call.close(200)
