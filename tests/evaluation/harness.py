"""Log-likelihoods of continuations over HTTP, asked for as evaluation harnesses do.

Several token-array prompts (context + continuation) per request with ``echo``, ``logprobs`` 1,
``max_tokens`` 1 and temperature 0; of each answer's lists the entries [len(context):-1] count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

PROMPTS_PER_REQUEST = 8


class Pair(NamedTuple):
    """Token ids of a context (at least one) and of what is said to follow it (at least one)."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """Σ log p(continuation | context), and whether greedy decoding would produce the continuation."""

    logprob: float
    is_greedy: bool


def log_likelihoods(http: httpx.Client, model: str, pairs: list[Pair]) -> list[Likelihood]:
    """Score ``pairs``, in their order. Raises HTTPStatusError, AssertionError for lists of a wrong shape."""
    found: list[Likelihood] = []
    for start in range(0, len(pairs), PROMPTS_PER_REQUEST):
        asked = pairs[start : start + PROMPTS_PER_REQUEST]
        body = {
            "model": model,
            "prompt": [pair.context + pair.continuation for pair in asked],
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,
            "temperature": 0,
            "seed": 1234,
        }
        response = http.post("/v1/completions", json=body).raise_for_status().json()
        choices = sorted(response["choices"], key=lambda choice: choice["index"])
        found += [_likelihood(pair, choice) for pair, choice in zip(asked, choices, strict=True)]
    return found


def _likelihood(pair: Pair, choice: dict[str, Any]) -> Likelihood:
    lists = choice["logprobs"]
    values, best = lists["token_logprobs"], lists["top_logprobs"]
    length = len(pair.context) + len(pair.continuation)
    assert len(values) == len(best) == length + 1, "one generated entry stands at the end"
    values, best = values[len(pair.context) : -1], best[len(pair.context) : -1]
    # By exact equality, as harnesses do: both must be the same number.
    is_greedy = all(value == max(top.values()) for value, top in zip(values, best, strict=True))
    return Likelihood(sum(values), is_greedy)
