"""What the fields of chat and text completions may be: rules between fields, then ranges.

The texts are the contract's; clients match on parts of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from appliance.api.dialect import Dialect
from appliance.api.field_errors import InvalidFieldError
from appliance.api.openai.generation.fields import GenerationFields
from appliance.api.validation import list_length_error
from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.logits.sampling import GREEDY_BELOW
from appliance.errors import InvalidRequestError

MAX_STOP_CHARACTERS = 1024
# A body of 64 MB may hold millions of ids; nobody stops at so many tokens.
MAX_STOP_TOKEN_IDS = 10_000
MAX_LOGPROBS = 20

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}\Z")
_NUMBERS = (
    *("temperature", "top_p", "min_p", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "length_penalty"),
)


def refused(name: str, message: str) -> InvalidRequestError:
    """Return the refusal of one field's value."""
    return InvalidRequestError(message, param=name)


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Let what an engine refuses in this block, which knows no fields, name the field it is from."""
    try:
        yield
    except InputRefusedError as error:
        error.param = error.param or param
        raise


def check_relations(
    fields: GenerationFields, dialect: Dialect, *, temperature: float, max_tokens: int | None
) -> None:
    """Check what the shared fields say together. Raises InvalidRequestError.

    ``temperature`` is the one that counts, ``max_tokens`` the most tokens of a choice when that is known.
    """
    n, best_of = fields.choices, fields.candidates
    greedy = temperature < GREEDY_BELOW
    if best_of < n:
        raise refused(
            "best_of", f"best_of must be greater than or equal to n, got n={n} and best_of={best_of}."
        )
    if fields.use_beam_search:
        _check_beams(fields, greedy)
    else:
        _check_no_beams(fields)
        if greedy and best_of > (n if dialect.greedy_choices else 1):
            raise refused("best_of", f"best_of must be 1 when using greedy sampling.Got {best_of}.")
    if fields.prompt_logprobs is not None and fields.stream:
        raise refused("prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.")
    if max_tokens is not None:
        check_min_tokens(fields.min_tokens, max_tokens)


def check_ranges(fields: GenerationFields, dialect: Dialect, *, least_tokens: int = 1) -> None:
    """Check the shared fields one by one; ``least_tokens`` is the smallest limit. Raises InvalidRequestError."""
    for name in _NUMBERS:
        # JSON has no such number, but a text like "nan" is taken for one.
        if getattr(fields, name) is not None and not math.isfinite(getattr(fields, name)):
            raise refused(name, f"{name} must be a finite number, got {getattr(fields, name)}.")
    _check_counts(fields, dialect)
    _check_sampling(fields)
    _check_lengths(fields, dialect, least_tokens)
    _check_stops(fields, dialect.max_stops)
    check_logprobs(fields.prompt_logprobs, "prompt_logprobs", "`prompt_logprobs` must be a positive value.")


def check_logprobs(value: int | None, name: str, negative: str) -> None:
    """Check how many logprobs are asked for; ``negative`` is the text below 0. Raises InvalidRequestError."""
    if value is not None and value < 0:
        raise refused(name, negative)
    if value is not None and value > MAX_LOGPROBS:
        raise refused(name, f"Cannot request more than {MAX_LOGPROBS} logprobs.")


def check_min_tokens(min_tokens: int | None, max_tokens: int) -> None:
    """Check that the least tokens are not more than the most. Raises InvalidRequestError."""
    if min_tokens is not None and min_tokens > max_tokens:
        raise refused(
            "min_tokens",
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.",
        )


def logit_bias_of(bias: dict[str, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Return the biases as (token id, value clamped to [-100, 100]); of two for one token the last counts.

    Raises InvalidRequestError for more biases than tokens, a key that is no id, an id outside the
    vocabulary and a value that is no number.
    """
    if len(bias or ()) > vocab_size:
        raise refused(
            "logit_bias", f"logit_bias may hold at most {vocab_size} tokens, got {len(bias or ())}."
        )
    found: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not _INTEGER.match(key):
            raise refused(
                "logit_bias",
                "Found token_id in logit_bias that is not an integer or string representing an integer",
            )
        token_id = int(key)
        if not 0 <= token_id < vocab_size:
            raise refused("logit_bias", f"token_id {token_id} in logit_bias contains out-of-vocab token id")
        if not math.isfinite(value):
            raise refused(
                "logit_bias", f"the bias of token_id {token_id} must be a finite number, got {value}."
            )
        found[token_id] = max(-100.0, min(value, 100.0))
    return tuple(found.items())


def _check_beams(fields: GenerationFields, greedy: bool) -> None:
    if fields.enforced_str:
        raise refused("enforced_str", "enforced_str cannot be used with beam search.")
    if fields.candidates <= 1:
        raise refused(
            "best_of", f"best_of must be greater than 1 when using beam search. Got {fields.candidates}."
        )
    if not greedy:
        raise refused("temperature", "temperature must be 0 when using beam search.")
    if fields.top_p not in (None, 1.0):
        raise refused("top_p", "top_p must be 1 when using beam search.")
    if fields.top_k not in (None, -1):
        raise refused("top_k", "top_k must be -1 when using beam search.")


def _check_no_beams(fields: GenerationFields) -> None:
    if fields.early_stopping not in (None, False):
        raise refused(
            "early_stopping", "early_stopping is not effective and must be False when not using beam search."
        )
    if fields.length_penalty not in (None, 1.0):
        raise refused(
            "length_penalty",
            "length_penalty is not effective and must be the default value of 1.0 when not using beam search.",
        )


def _check_counts(fields: GenerationFields, dialect: Dialect) -> None:
    if fields.choices < 1:
        raise refused("n", f"n must be at least 1, got {fields.choices}.")
    for name, count in (("n", fields.choices), ("best_of", fields.candidates)):
        if count > dialect.max_choices:
            raise refused(name, f"{name} must be at most {dialect.max_choices}, got {count}.")


def _check_sampling(fields: GenerationFields) -> None:
    if fields.temperature is not None and fields.temperature < 0:
        raise refused("temperature", f"temperature must be non-negative, got {fields.temperature}.")
    if fields.temperature is not None and fields.temperature > 2:
        raise refused("temperature", f"temperature must be in [0, 2], got {fields.temperature}.")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(fields, name)
        if value is not None and not -2 <= value <= 2:
            raise refused(name, f"{name} must be in [-2, 2], got {value}.")
    for name, most in (("repetition_penalty", 2), ("top_p", 1)):
        value = getattr(fields, name)
        if value is not None and not 0 < value <= most:
            raise refused(name, f"{name} must be in (0, {most}], got {value}.")
    if fields.top_k is not None and fields.top_k != -1 and fields.top_k < 1:
        raise refused("top_k", f"top_k must be -1 (disable), or at least 1, got {fields.top_k}.")
    if fields.min_p is not None and not 0 <= fields.min_p <= 1:
        raise refused("min_p", f"min_p must be in [0, 1], got {fields.min_p}.")


def _check_lengths(fields: GenerationFields, dialect: Dialect, least_tokens: int) -> None:
    most = dialect.max_completion_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(fields, name)
        if value is not None and value < least_tokens:
            raise refused(name, f"{name} must be at least {least_tokens}, got {value}.")
        if value is not None and most is not None and value > most:
            raise refused(name, f"{name} must be at most {most}, got {value}.")
    if fields.min_tokens is not None and fields.min_tokens < 0:
        raise refused(
            "min_tokens", f"min_tokens must be greater than or equal to 0, got {fields.min_tokens}."
        )
    if fields.truncate_prompt_tokens is not None and fields.truncate_prompt_tokens < 1:
        raise refused(
            "truncate_prompt_tokens",
            f"truncate_prompt_tokens must be at least 1, got {fields.truncate_prompt_tokens}.",
        )


def check_stop_count(stops: Sequence[str], most: int) -> None:
    """Check how many stop strings there are. Raises InvalidFieldError."""
    if len(stops) > most:
        raise InvalidFieldError(
            f"stop may hold at most {most} strings, got {len(stops)}.",
            "stop",
            [list_length_error(["body", "stop"], list(stops), most=most)],
        )


def _check_stops(fields: GenerationFields, most: int) -> None:
    stops = fields.stop_strings()
    check_stop_count(stops, most)
    if "" in stops:
        raise refused("stop", "stop cannot contain an empty string.")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise refused(
            "stop", f"stop may hold strings of at most {MAX_STOP_CHARACTERS} characters, got {longest}."
        )
    ids = len(fields.stop_token_ids or ())
    if ids > MAX_STOP_TOKEN_IDS:
        raise refused(
            "stop_token_ids", f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids, got {ids}."
        )
