"""From the fields of a request to what the engine is asked: one GenerationRequest per prompt."""

from __future__ import annotations

import hashlib
import struct
from typing import Literal, TypeVar

import msgspec

from appliance.api.openai.generation.checks import check_min_tokens, logit_bias_of, naming, refused
from appliance.api.openai.generation.context_limit import completion_limit
from appliance.api.openai.generation.fields import GenerationFields
from appliance.engines.generation.constraints.compiler import ConstraintSpec
from appliance.engines.generation.contract import GenerationRequest, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.gateway.call import ModelCall

T = TypeVar("T")

INT64_MAX = (1 << 63) - 1
# The most sequences (prompts and candidates of each) of one request.
MAX_SEQUENCES = 1024
# The most log probabilities of one answer, those of the best tokens included: they are kept until it is sent.
MAX_ANSWER_LOGPROBS = 4_000_000
# The fields of constraints; of several the first counts.
FORM_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "response_format")


def sampling_of(fields: GenerationFields, temperature: float, vocab_size: int) -> Sampling:
    """Return how tokens are drawn, without a seed: each sequence has its own (``sequence_seed``).

    Raises InvalidRequestError for a wrong ``logit_bias``.
    """
    return Sampling(
        temperature=temperature,
        top_p=_or(fields.top_p, 1.0),
        top_k=_or(fields.top_k, -1),
        min_p=_or(fields.min_p, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        logit_bias=logit_bias_of(fields.logit_bias, vocab_size),
    )


def sequence_seed(seed: int | None, prompt: int, candidate: int) -> int | None:
    """Return the seed of one candidate of one prompt: its own, and the same in every run.

    -1 is no seed; seeds beyond int64 are clamped.
    """
    if seed is None or seed == -1:
        return None
    clamped = max(-INT64_MAX - 1, min(seed, INT64_MAX))
    digest = hashlib.sha256(struct.pack("<qqq", clamped, prompt, candidate)).digest()
    return int.from_bytes(digest[:8], "little") & INT64_MAX


def check_amount(fields: GenerationFields, prompts: int) -> None:
    """Refuse more sequences than one request may have. Raises InvalidRequestError."""
    if prompts * fields.candidates > MAX_SEQUENCES:
        raise refused(
            "best_of" if fields.best_of is not None else "n",
            f"A request may have at most {MAX_SEQUENCES} sequences, got {prompts} prompts"
            f" with {fields.candidates} each.",
        )


def check_logprobs_amount(requests: list[GenerationRequest], choices: int) -> None:
    """Refuse an answer with more log probabilities than one can hold. Raises InvalidRequestError."""
    amount = 0
    for request in requests:
        if request.logprobs is not None:
            amount += choices * request.max_tokens * (request.logprobs + 1)
        if request.prompt_logprobs is not None:
            amount += choices * len(request.prompt) * (request.prompt_logprobs + 1)
    if amount > MAX_ANSWER_LOGPROBS:
        raise refused(
            "logprobs",
            f"The answer may hold at most {MAX_ANSWER_LOGPROBS} log probabilities, got up to {amount}."
            " Please ask for fewer tokens, choices or top log probabilities.",
        )


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the prompts of one request have in common, beside its fields."""

    sampling: Sampling
    # None: what the context leaves.
    max_tokens: int | None
    # The tokens of ``enforced_str``, end-of-sequence included.
    enforced: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    cache_scope: str
    priority: int = 0


async def enforced_tokens(fields: GenerationFields, engine: GenerationEngine) -> tuple[int, ...]:
    """Return the tokens of ``enforced_str`` and the end of sequence; none when it is not set."""
    if not fields.enforced_str:
        return ()
    # Literally, or the name of a control token would not come back as the text that it is here.
    with naming("enforced_str"):
        ids = await engine.encode(fields.enforced_str, False, literal=True)
    return (*ids, *_end_of_sequence(engine))


def generation_request(
    fields: GenerationFields,
    prompt: list[int],
    wishes: Wishes,
    engine: GenerationEngine,
    param: Literal["messages", "prompt"],
) -> GenerationRequest:
    """Return what the engine is asked for one prompt.

    An enforced answer ends by its own tokens alone. Raises InvalidRequestError when prompt and
    completion do not fit the context.
    """
    asked = wishes.max_tokens
    if wishes.enforced and asked is None:
        asked = len(wishes.enforced)
    limit = completion_limit(len(prompt), asked, engine.context_length, param)
    common = GenerationRequest(
        prompt=prompt,
        max_tokens=limit,
        sampling=wishes.sampling,
        skip_special_tokens=_or(fields.skip_special_tokens, True),
        spaces_between_special_tokens=_or(fields.spaces_between_special_tokens, True),
        logprobs=wishes.logprobs,
        prompt_logprobs=wishes.prompt_logprobs,
        cache_scope=wishes.cache_scope,
        priority=wishes.priority,
    )
    if wishes.enforced:
        return msgspec.structs.replace(
            common, max_tokens=min(limit, len(wishes.enforced)), enforced=wishes.enforced
        )
    check_min_tokens(fields.min_tokens, limit)
    stop = fields.stop_strings()
    stop_token_ids = frozenset(
        token_id for token_id in fields.stop_token_ids or () if 0 <= token_id < engine.vocab_size
    )
    return msgspec.structs.replace(
        common,
        stop=stop,
        stop_token_ids=stop_token_ids,
        # Alone it would show the end of sequence, which nobody asked for.
        include_stop=bool(fields.include_stop_str_in_output and (stop or fields.stop_token_ids)),
        ignore_eos=bool(fields.ignore_eos),
        min_tokens=_or(fields.min_tokens, 0),
    )


def affordable(
    requests: list[GenerationRequest], fields: GenerationFields, call: ModelCall
) -> list[GenerationRequest]:
    """Count the prompts against the caller's limits, and return the requests as long as its budget affords.

    Raises LimitExceededError, InsufficientBudgetError.
    """
    wanted = max(request.max_tokens for request in requests)
    allowed = call.reserve(
        sum(len(request.prompt) for request in requests), wanted, len(requests) * fields.choices
    )
    if allowed >= wanted:
        return requests
    return [
        msgspec.structs.replace(
            request,
            max_tokens=min(request.max_tokens, allowed),
            min_tokens=min(request.min_tokens, allowed),
            enforced=request.enforced[:allowed],
        )
        for request in requests
    ]


async def constrained(
    requests: list[GenerationRequest],
    spec: ConstraintSpec | None,
    fields: GenerationFields,
    engine: GenerationEngine,
) -> list[GenerationRequest]:
    """Return the requests held to ``spec``, but for enforced answers. Raises InputRefusedError (400)."""
    if spec is None or fields.enforced_str:
        return requests
    with naming(next((name for name in FORM_FIELDS if getattr(fields, name) is not None), "tools")):
        constraint = await engine.constraint(spec)
    return [msgspec.structs.replace(request, constraint=constraint) for request in requests]


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _end_of_sequence(engine: GenerationEngine) -> tuple[int, ...]:
    """Return the token that ends an answer; of several the one that the model's template knows."""
    named = engine.added_token_id(engine.eos_token) if engine.eos_token else None
    if named is not None and named in engine.eos_token_ids:
        return (named,)
    return tuple(sorted(engine.eos_token_ids)[:1])
