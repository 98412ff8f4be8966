"""One request of an account to a router: admitted, reserved for, sent to a provider, accounted for."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from appliance.accounts.keys import Account
from appliance.clock import now_ms
from appliance.errors import OverloadedError
from appliance.gateway.budget import Ledger, Reservation, StoredBudget, token_cost
from appliance.gateway.errors import InsufficientBudgetError
from appliance.gateway.limits.limiter import Limiter
from appliance.gateway.routing.prompt_estimates import Guess, PromptEstimate
from appliance.gateway.routing.records import Limits, Provider, Router
from appliance.gateway.routing.states import Outcome, ProviderStates
from appliance.gateway.usage.carbon import footprint
from appliance.gateway.usage.energy import EnergyMeter, EnergyShare
from appliance.gateway.usage.record import Footprint, UsageRecord

T = TypeVar("T")

MICROS = 1_000_000


class CallUsage(msgspec.Struct, frozen=True):
    """What a request has used so far; ``cost`` in the currency."""

    prompt_tokens: int
    completion_tokens: int
    cost: float
    footprint: Footprint
    requests: int = 1


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """What calls share: the counters, and where records go (with whether the call is exempt).

    ``budget`` reads a user's from the store (None without a bound).
    """

    limiter: Limiter
    ledger: Ledger
    states: ProviderStates
    budget: Callable[[int], StoredBudget | None]
    record: Callable[[UsageRecord, bool], None]
    energy: EnergyMeter = msgspec.field(default_factory=EnergyMeter)


class ModelCall:
    """The way of one request. ``exempt`` calls (those of the bootstrap key on OpenGateLLM's mount) have neither
    limits nor budget, and leave no record. ``close`` must be called in the end, whatever happens.
    """

    def __init__(
        self,
        context: CallContext,
        account: Account,
        router: Router,
        limits: Limits,
        *,
        endpoint: str,
        method: str,
        priority: int,
        exempt: bool = False,
    ) -> None:
        self.account = account
        self.router = router
        self.priority = priority
        self.exempt = exempt
        self.provider: Provider | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._context = context
        self._limits = limits
        self._endpoint = endpoint
        self._method = method
        self._started = time.monotonic()
        self._ttft: float | None = None
        # When it went to ``provider``; None while it is in flight nowhere.
        self._sent: float | None = None
        self._reservation = Reservation(account.user_id)
        self._tokens_admitted = False
        # What the prompt was taken for, where the provider alone can count it, and what is known of its counts.
        self._guessed = 0
        self._estimate: PromptEstimate | None = None
        self._counted = False
        self._refused = False
        self._broken: int | None = None
        self._closed = False
        # The energy that this box takes for it, while it does; and the footprint that was shown last.
        self._energy: EnergyShare | None = None
        self._shown: tuple[tuple[int, int], Footprint] | None = None

    def admit(self) -> None:
        """Count the request. Raises LimitExceededError."""
        if not self.exempt:
            self._context.limiter.admit_request(self.account.user_id, self.router.id, self._limits)

    def headers(self) -> dict[str, str]:
        """Return the headers that tell the caller its limits."""
        if self.exempt:
            return {}
        return self._context.limiter.headers(self.account.user_id, self.router.id, self._limits)

    def reserve(
        self, prompt_tokens: int, wanted: int = 0, sequences: int = 1, *, guess: Guess | None = None
    ) -> int:
        """Count the prompt against the limits, and reserve budget for it and ``sequences`` completions.

        Where the prompt's tokens are a ``guess``, budget is reserved for the most that the provider may count.
        Returns how many of the ``wanted`` tokens each completion may have. May be called again, when another
        provider counts otherwise. Raises LimitExceededError, InsufficientBudgetError.
        """
        self.prompt_tokens = prompt_tokens
        self._guessed, self._counted, self._estimate = prompt_tokens, False, None
        if guess is not None and self.provider is not None:
            self._estimate = self._context.states.prompts(self.provider, guess)
        if self.exempt:
            return wanted
        if prompt_tokens and not self._tokens_admitted:
            # What a limit refuses leaves no record, wherever it is found out.
            self._refused = True
            self._context.limiter.admit_tokens(
                self.account.user_id, self.router.id, self._limits, prompt_tokens
            )
            self._refused = False
            self._tokens_admitted = True
        if not (self.router.cost_prompt_tokens or self.router.cost_completion_tokens):
            return wanted
        # Read now: since the key was looked up, others of its user may have spent. The ledger wants it of this step.
        budget = self._context.budget(self.account.user_id)
        if budget is None:
            return wanted
        if self._estimate is None:
            return self._reserve(budget, prompt_tokens, wanted, sequences)
        try:
            return self._reserve(budget, self._estimate.most(prompt_tokens), wanted, sequences)
        except InsufficientBudgetError:
            # Raises where the guess is too much as well.
            self._reserve(budget, prompt_tokens, wanted, sequences)
            self._context.ledger.release(self._reservation)
            self._estimate.doubt()
            raise

    def _reserve(self, budget: StoredBudget, prompt_tokens: int, wanted: int, sequences: int) -> int:
        prices = (self.router.cost_prompt_tokens, self.router.cost_completion_tokens)
        return self._context.ledger.reserve(
            self._reservation, budget, prices, (prompt_tokens, wanted), sequences
        )

    def count_prompt(self, tokens: int) -> None:
        """Take over what the provider counted the prompt as."""
        self.prompt_tokens = tokens
        self._counted = True

    @property
    def reserved(self) -> bool:
        """Whether part of a budget is held for it."""
        return self._reservation.amount > 0

    async def dispatch(self, attempt: Callable[[Provider], Awaitable[T]]) -> T:
        """Return what ``attempt`` returns for a provider; when one cannot take the request, try the next.

        ``attempt`` must raise OverloadedError (503) for that, and only before the first byte of an answer.
        Raises what the last provider raised, or ProviderBusyError.
        """
        states = self._context.states
        tried: set[int] = set()
        failure: OverloadedError | None = None
        while True:
            provider = await states.acquire(self.router, tried, self.priority)
            if provider is None:
                raise failure or OverloadedError(f"No provider of `{self.router.name}` can be reached.")
            self.provider, self._sent = provider, time.monotonic()
            self._energy = self._context.energy.begin() if provider.is_local else None
            try:
                return await attempt(provider)
            except OverloadedError as error:
                self._sent = None
                # What it produced before it failed, nobody gets.
                self.completion_tokens = 0
                states.failed(provider, error)
                tried.add(provider.id)
                failure = error
                if len(tried) < len(self.router.providers):
                    # Else the record names this one.
                    self.provider = None
                    self._end_energy()

    def first_token(self) -> None:
        """Note that the first of a stream is on its way."""
        if self._ttft is None:
            self._ttft = time.monotonic() - self._started

    def usage(self) -> CallUsage:
        """Return what the tokens counted so far cost and burned."""
        cost = token_cost(
            self.router.cost_prompt_tokens,
            self.router.cost_completion_tokens,
            self.prompt_tokens,
            self.completion_tokens,
        )
        return CallUsage(self.prompt_tokens, self.completion_tokens, cost / MICROS, self._footprint())

    def broken(self, status: int) -> None:
        """Note that the answer failed after its first byte: the record shows this status."""
        self._broken = status

    def close(self, status: int) -> None:
        """Account for the request, which was answered with ``status``; a failed one has used nothing."""
        if self._closed:
            return
        self._closed = True
        # First, lest anything that fails below leaves it in flight for ever.
        self._leave_provider(self._broken or status)
        self._context.ledger.release(self._reservation)
        if self.provider is None:
            return
        self._end_energy()
        if self._refused:
            return
        if status >= 400:
            self.prompt_tokens = self.completion_tokens = 0
        elif self._estimate is not None and self._counted:
            self._estimate.learn(self._guessed, self.prompt_tokens)
        latency = time.monotonic() - self._started
        status = self._broken or status
        self._context.record(self._record(self.provider, status, latency), self.exempt)

    def _leave_provider(self, status: int) -> None:
        if self.provider is None or self._sent is None:
            return
        # A provider is not slower for the time that the request waited for it, or for others.
        waited = self._sent - self._started
        outcome = Outcome(
            failed=status >= 500,
            sampled=status < 400,
            latency=time.monotonic() - self._sent,
            ttft=None if self._ttft is None else max(0.0, self._ttft - waited),
            completion_tokens=self.completion_tokens,
        )
        self._sent = None
        self._context.states.ended(self.provider, outcome)

    def _record(self, provider: Provider, status: int, latency: float) -> UsageRecord:
        used = self.usage()
        return UsageRecord(
            created_at=now_ms(),
            user_id=self.account.user_id,
            email=self.account.email,
            key_id=self.account.key_id,
            key_name=self.account.key_name,
            router_id=self.router.id,
            model=self.router.name,
            provider_id=provider.id,
            provider_model=provider.model_name,
            endpoint=self._endpoint,
            method=self._method,
            status=status,
            latency_ms=round(latency * 1000),
            ttft_ms=None if self._ttft is None else round(self._ttft * 1000),
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            cost=round(used.cost * MICROS),
            footprint=used.footprint,
        )

    def _footprint(self) -> Footprint:
        provider = self.provider
        if provider is None:
            return Footprint()
        tokens = (self.prompt_tokens, self.completion_tokens)
        # The record has what the answer said, though time goes on between them.
        if self._shown is None or self._shown[0] != tokens:
            burned = footprint(
                provider.active_params,
                provider.total_params,
                provider.hosting_zone,
                sum(tokens),
                time.monotonic() - self._started,
                None if self._energy is None else self._energy.kwh(),
            )
            self._shown = (tokens, burned)
        return self._shown[1]

    def _end_energy(self) -> None:
        if self._energy is not None:
            self._energy.end()
