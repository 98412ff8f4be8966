"""Calls into llguidance: its limits, its errors in our words, and what keeps its faults from the process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import llguidance

from appliance.engines.errors import InputRefusedError

logger = logging.getLogger(__name__)

# Of the thread that compiles: the depth of its recursion is bounded by the limits on schemas and grammars.
STACK_BYTES = 1 << 27
LONGEST_REASON = 400

T = TypeVar("T")

_stack_size = threading.Lock()


def limits(items: int) -> llguidance.LLParserLimits:
    """Return the limits of one constraint; ``items`` is how many ways there may be to read the text so far."""
    return llguidance.LLParserLimits(
        max_items_in_row=items,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=30_000,
        verbose_errors=False,
    )


def reason(error: str) -> str:
    """Return what to tell a client about an error of llguidance."""
    lines = [line.strip() for line in error.splitlines()]
    text = " ".join(line for line in lines if line and line != "<non-verbose/>")
    if "NoExtension" in text:
        return "The constraint cannot be satisfied: no text can follow under it."
    if "Regex is empty" in text:
        return "The JSON schema cannot be satisfied: no string fits all its patterns, formats and lengths."
    if "determine if regex is empty" in text:
        return "The JSON schema is too complex: whether any string fits its patterns and lengths is hard to tell."
    if "Unsatisfiable schema" in text:
        return f"The JSON schema cannot be satisfied: {text.rpartition('Unsatisfiable schema: ')[2][:LONGEST_REASON]}"
    if any(word in text.lower() for word in ("too many", "too large", "too big", "max is", "fuel")):
        return f"The constraint is too complex: {text[:LONGEST_REASON]}"
    return f"The constraint cannot be used: {text[:LONGEST_REASON]}"


def unpanicked(call: Callable[[], T]) -> T:
    """Return what ``call`` returns. A panic inside llguidance, which is no Exception, is an InputRefusedError."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        logger.exception("llguidance panicked")
        raise InputRefusedError(
            "The constraint cannot be used: it makes the constraint engine fail."
        ) from error


def with_deep_stack(call: Callable[[], T]) -> T:
    """Return what ``call`` returns in a thread with a deep stack. Raises what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(unpanicked(call))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="constraint")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
