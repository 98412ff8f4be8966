"""How each provider is doing, and which of a router's providers takes the next request."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import msgspec

from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.gateway.errors import ProviderBusyError, UpstreamUnavailableError
from appliance.gateway.routing.breaker import Breaker
from appliance.gateway.routing.prompt_estimates import Guess, PromptEstimate
from appliance.gateway.routing.records import Provider, Router
from appliance.gateway.routing.samples import Sample, Samples

BUSY_RETRY_SECONDS = 10


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request at a provider ended. Times in seconds since it was sent there; ``ttft`` None unless it streamed.

    ``failed`` when the provider failed it; ``sampled`` when it went well and says how fast the provider is.
    """

    failed: bool
    sampled: bool
    latency: float
    ttft: float | None
    completion_tokens: int


class ProviderSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a provider now. ``samples`` and the figures (seconds, tokens per second) are of 120 seconds."""

    in_flight: int
    healthy: bool
    samples: int
    ttft: float | None
    latency: float | None
    tokens_per_second: float | None


class _State:
    """One provider's."""

    __slots__ = ("breaker", "heard_at", "in_flight", "prompts", "samples")

    def __init__(self) -> None:
        self.in_flight = 0
        self.samples = Samples()
        self.breaker = Breaker()
        self.prompts: dict[Guess, PromptEstimate] = {"texts": PromptEstimate(), "mixed": PromptEstimate()}
        # When it last answered or failed; a provider that is new has not.
        self.heard_at = -math.inf


@dataclass(order=True, slots=True)
class _Waiter:
    """A request that no provider can take yet. Sorted as they are served: higher priority, then earlier."""

    rank: tuple[int, int]
    router: Router = field(compare=False)
    tried: frozenset[int] = field(compare=False)
    served: asyncio.Future[None] = field(compare=False)
    provider: Provider | None = field(compare=False, default=None)


class ProviderStates:
    """What is known of the providers of a running service. Used on the event loop only."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries = settings.routing_max_retries
        self._countdown = settings.routing_retry_countdown
        self._clock = clock
        self._states: dict[int, _State] = {}
        # By router: nobody waits behind the requests of another.
        self._queues: dict[int, list[_Waiter]] = {}
        self._numbers = itertools.count()

    async def acquire(self, router: Router, tried: Collection[int], priority: int) -> Provider | None:
        """Choose a provider of ``router`` that was not tried yet, and count a request in flight there.

        Waits while all that could take it are beyond their quality-of-service limits, callers of higher
        ``priority`` first. Returns None when every provider was tried. Raises ProviderBusyError.
        """
        excluded = frozenset(tried)
        if all(provider.id in excluded for provider in router.providers):
            return None
        if not self._queues.get(router.id):
            chosen = self._take(router, excluded)
            if chosen is not None:
                return chosen
        waiter = _Waiter(
            (-priority, next(self._numbers)), router, excluded, asyncio.get_running_loop().create_future()
        )
        bisect.insort(self._queues.setdefault(router.id, []), waiter)
        return await self._wait(waiter)

    def failed(self, provider: Provider, error: ApplianceError) -> None:
        """Note that a request could not be begun there; it is no longer in flight."""
        self._released(provider)
        # A full queue on this box, or a server's "too busy", is no failure.
        if isinstance(error, UpstreamUnavailableError):
            self._broke(provider)
        self._serve(provider.router_id)

    def ended(self, provider: Provider, outcome: Outcome) -> None:
        """Note how a request there ended; it is no longer in flight."""
        state = self._released(provider)
        now = self._clock()
        if outcome.failed:
            self._broke(provider)
        elif outcome.sampled:
            speed = outcome.completion_tokens / outcome.latency if outcome.latency > 0 else 0.0
            state.samples.add(Sample(now, outcome.ttft, outcome.latency, speed or None))
            state.heard_at = now
            state.breaker.succeeded()
        self._serve(provider.router_id)

    def probed(self, provider: Provider, reached: bool) -> None:
        """Note whether a provider could be reached by a call that was no request."""
        if not reached:
            self._broke(provider)
            return
        state = self._state(provider.id)
        state.heard_at = self._clock()
        state.breaker.reached(state.heard_at)
        self._serve(provider.router_id)

    def healthy(self, provider: Provider) -> bool:
        """Tell whether a provider is not known to fail."""
        return provider.is_local or self._state(provider.id).breaker.closed

    def silent_seconds(self, provider: Provider) -> float:
        """Return how long ago a provider was last heard of, infinity when it never was."""
        return self._clock() - self._state(provider.id).heard_at

    def prompts(self, provider: Provider, guess: Guess) -> PromptEstimate:
        """Return what is known of how a provider counts prompts of a kind."""
        return self._state(provider.id).prompts[guess]

    def snapshot(self) -> dict[int, ProviderSnapshot]:
        """Return what is known of each provider that was asked for anything, by id."""
        now = self._clock()
        return {
            number: ProviderSnapshot(
                in_flight=state.in_flight,
                healthy=state.breaker.closed,
                samples=state.samples.recent(now),
                ttft=state.samples.ttft(now),
                latency=state.samples.latency(now),
                tokens_per_second=state.samples.speed(now),
            )
            for number, state in self._states.items()
        }

    def waiting(self) -> dict[int, int]:
        """Return how many requests wait for a provider, by the id of their router."""
        return {router: len(queue) for router, queue in self._queues.items() if queue}

    def keep(self, providers: Collection[int]) -> None:
        """Forget the providers that are not among these, but those with requests in flight."""
        for number in [
            each for each, state in self._states.items() if each not in providers and not state.in_flight
        ]:
            del self._states[number]

    async def _wait(self, waiter: _Waiter) -> Provider:
        router = waiter.router.id
        started = self._clock()
        try:
            self._serve(router)
            for _ in range(self._retries):
                if waiter.provider is None:
                    await asyncio.wait([waiter.served], timeout=self._countdown)
                if waiter.provider is None:
                    self._serve(router)  # samples have grown old, or a pause is over
            if waiter.provider is not None:
                return waiter.provider
        except BaseException:
            if waiter.provider is not None:  # given one in the moment that it was cancelled
                self._released(waiter.provider)
                self._serve(waiter.provider.router_id)
            raise
        finally:
            self._leave(router, waiter)
        waited = round(self._clock() - started)
        raise ProviderBusyError(f"Model is too busy after {waited} seconds", retry_after=BUSY_RETRY_SECONDS)

    def _leave(self, router: int, waiter: _Waiter) -> None:
        queue = self._queues.get(router, [])
        if waiter in queue:
            queue.remove(waiter)
        if not queue:
            self._queues.pop(router, None)

    def _serve(self, router: int) -> None:
        """Give what is free to those who wait, in their order."""
        queue = self._queues.get(router)
        if not queue:
            return
        hopeless: set[frozenset[int]] = set()
        left: list[_Waiter] = []
        for waiter in queue:
            if waiter.tried not in hopeless:
                waiter.provider = self._take(waiter.router, waiter.tried)
            if waiter.provider is None:
                hopeless.add(waiter.tried)
                left.append(waiter)
            elif not waiter.served.done():
                waiter.served.set_result(None)
        queue[:] = left

    def _take(self, router: Router, tried: frozenset[int]) -> Provider | None:
        """Choose a provider that can take a request now, and count one; None when all are beyond their limits."""
        now = self._clock()
        untried = [provider for provider in router.providers if provider.id not in tried]
        sound = [provider for provider in untried if self.healthy(provider)]
        due = [
            provider
            for provider in untried
            if not provider.is_local and self._state(provider.id).breaker.due(now)
        ]
        # One request tries what failed before; else that comes last, when nothing else is left.
        able = self._within_limits(due, now) or self._within_limits(sound or untried, now)
        if not able:
            return None
        chosen = self._balanced(router, able, now)
        state = self._state(chosen.id)
        state.in_flight += 1
        if chosen in due:
            state.breaker.try_now()
        return chosen

    def _balanced(self, router: Router, able: list[Provider], now: float) -> Provider:
        if router.load_balancing_strategy == "least_busy" and len(able) > 1:
            times = {provider.id: self._state(provider.id).samples.ttft(now) for provider in able}
            slowness = {number: math.inf if ttft is None else ttft for number, ttft in times.items()}
            least = min(slowness.values())
            able = [provider for provider in able if slowness[provider.id] == least]
        return random.choice(able)  # noqa: S311 - balancing, not a secret

    def _within_limits(self, providers: list[Provider], now: float) -> list[Provider]:
        return [provider for provider in providers if self._within_limit(provider, now)]

    def _within_limit(self, provider: Provider, now: float) -> bool:
        """Tell whether a provider is within its quality-of-service limit (milliseconds); without samples it is."""
        limit, state = provider.qos_limit, self._state(provider.id)
        if provider.qos_metric is None or limit is None:
            return True
        if provider.qos_metric == "inflight":
            return state.in_flight <= limit
        if provider.qos_metric == "performance":
            speed = state.samples.speed(now)
            return speed is None or speed >= limit
        seconds = state.samples.ttft(now) if provider.qos_metric == "ttft" else state.samples.latency(now)
        return seconds is None or seconds * 1000 <= limit

    def _broke(self, provider: Provider) -> None:
        state = self._state(provider.id)
        state.heard_at = self._clock()
        if not provider.is_local:
            state.breaker.failed(state.heard_at)

    def _released(self, provider: Provider) -> _State:
        state = self._state(provider.id)
        state.in_flight = max(0, state.in_flight - 1)
        state.breaker.tried()
        return state

    def _state(self, provider_id: int) -> _State:
        return self._states.setdefault(provider_id, _State())
