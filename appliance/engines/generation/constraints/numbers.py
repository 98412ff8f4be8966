"""What a JSON schema says of numbers, made exact: within it, every text is read back as an allowed number.

Readers take numbers for doubles. A decimal just below an exclusive bound may round onto it, and one
of hundreds of digits may become infinity, so bounds are drawn in to decimals that doubles tell apart
(15 digits), and the texts are kept short. That also ends the digits of a model that would go on for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec

from appliance.engines.errors import InputRefusedError

# The integers that every reader of JSON has exactly.
LARGEST_INTEGER = (1 << 53) - 1
LARGEST_NUMBER = 10**15
DIGITS = 15
DECIMALS = 9
# The constraint engine walks through all remainders of a division.
LARGEST_DIVISOR = 10_000
# Divisors of schemas that are intersected are multiplied, in 32 bits.
LARGEST_SHARED_DIVISOR = 1000

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
KEYWORDS = (*BOUNDS, "multipleOf")


def numbers(node: dict[str, Any], *, integer: bool, bounded: bool) -> dict[str, Any] | None:
    """Return the keywords of the numbers that the checked schema ``node`` allows, or None when there are none.

    ``bounded`` also limits the digits of numbers that the schema leaves unlimited; it is for schemas that
    are not intersected with others. Raises InputRefusedError for what is not supported.
    """
    divisor = _divisor(node, integer=integer, shared=not bounded)
    low, high = _strictest(node, "minimum", max), _strictest(node, "maximum", min)
    largest = LARGEST_INTEGER if integer else LARGEST_NUMBER
    if (low is not None and low.value > largest) or (high is not None and high.value < -largest):
        raise InputRefusedError(f"Bounds of numbers beyond {largest} are not supported.")
    # Where multiples are counted, so are those at the ends.
    limited = bounded or divisor is not None
    if low is None or low.value < -largest:
        low = _Bound(Fraction(-largest), strict=False) if limited or low is not None else None
    if high is None or high.value > largest:
        high = _Bound(Fraction(largest), strict=False) if limited or high is not None else None
    if low is not None and high is not None and _nothing_between(low, high):
        return None
    step = divisor or (Fraction(1) if integer else None)
    if step is not None:
        return _multiples(low, high, step, divisor)
    return _decimals(low, high, bounded)


def allows(node: dict[str, Any], value: float) -> bool:
    """Return whether the keywords of ``node`` allow a number."""
    exact = Fraction(repr(value))
    low, high = _stated(node, "minimum"), _stated(node, "maximum")
    above, below = _stated(node, "exclusiveMinimum"), _stated(node, "exclusiveMaximum")
    divisor = _stated(node, "multipleOf")
    return (
        (low is None or exact >= low)
        and (high is None or exact <= high)
        and (above is None or exact > above)
        and (below is None or exact < below)
        and (divisor is None or (exact / divisor).denominator == 1)
    )


class _Bound(msgspec.Struct, frozen=True):
    """An end of a range; ``strict`` = it does not belong to it."""

    value: Fraction
    strict: bool


def _nothing_between(low: _Bound, high: _Bound) -> bool:
    return low.value > high.value or (low.value == high.value and (low.strict or high.strict))


def _multiples(
    low: _Bound | None, high: _Bound | None, step: Fraction, divisor: Fraction | None
) -> dict[str, Any] | None:
    """Return the keywords of the multiples of ``step`` between the bounds, whose ends are multiples too."""
    kept: dict[str, Any] = {}
    if low is not None:
        first = math.floor(low.value / step) + 1 if low.strict else math.ceil(low.value / step)
        kept["minimum"] = _plain(first * step)
    if high is not None:
        last = math.ceil(high.value / step) - 1 if high.strict else math.floor(high.value / step)
        kept["maximum"] = _plain(last * step)
    if len(kept) == 2 and kept["minimum"] > kept["maximum"]:
        return None
    return kept if divisor is None else {**kept, "multipleOf": _plain(divisor)}


def _decimals(low: _Bound | None, high: _Bound | None, bounded: bool) -> dict[str, Any]:
    """Return the keywords of the numbers between the bounds, as decimals that doubles tell apart."""
    kept: dict[str, Any] = {}
    decimals = DECIMALS
    for bound, sign, plain in ((low, 1, "minimum"), (high, -1, "maximum")):
        if bound is None:
            continue
        exact = _inside(bound.value, sign, strict=False) == bound.value
        # Towards zero the engine takes an exclusive bound for an inclusive one where both have the same
        # integer part. Away from zero it is exact, if the decimals are few.
        if bound.strict and exact and bounded and bound.value * sign < 0:
            kept[f"exclusive{plain.capitalize()}"] = _plain(bound.value)
            decimals = min(decimals, _decimals_at(bound.value))
        else:
            kept[plain] = _plain(_inside(bound.value, sign, strict=bound.strict and exact))
    ends = [Fraction(repr(kept[key])) for key in kept]
    if len(ends) == 2 and ends[0] > ends[1]:
        raise InputRefusedError("The bounds of a number are too close to each other.")
    if bounded:
        unit = Fraction(1, 10**decimals)
        strict = "exclusiveMinimum" in kept
        first = math.floor(ends[0] / unit) + 1 if strict else math.ceil(ends[0] / unit)
        if first * unit > ends[1] or (first * unit == ends[1] and "exclusiveMaximum" in kept):
            raise InputRefusedError("The bounds of a number are too close to each other.")
        kept["multipleOf"] = _plain(unit)
    return kept


def _inside(bound: Fraction, sign: int, *, strict: bool) -> Fraction:
    """Return the nearest decimal of few digits from ``bound`` on upwards (``sign`` 1) or downwards (-1).

    ``strict`` = not the bound itself.
    """
    unit = Fraction(1, 10 ** _decimals_at(bound))
    steps = math.ceil(sign * bound / unit)
    if strict and steps * unit == sign * bound:
        steps += 1
    return sign * steps * unit


def _decimals_at(value: Fraction) -> int:
    """Return how many decimals numbers of this size may have for doubles to tell them apart."""
    digits = len(str(abs(math.trunc(value)))) if abs(value) >= 1 else 0
    return max(0, min(DIGITS - digits, DECIMALS))


def _strictest(
    node: dict[str, Any], plain: str, choose: Callable[[Fraction, Fraction], Fraction]
) -> _Bound | None:
    included, excluded = _stated(node, plain), _stated(node, f"exclusive{plain.capitalize()}")
    if excluded is None:
        return None if included is None else _Bound(included, strict=False)
    if included is None or choose(included, excluded) == excluded:
        return _Bound(excluded, strict=True)
    return _Bound(included, strict=False)


def _stated(node: dict[str, Any], keyword: str) -> Fraction | None:
    return Fraction(repr(node[keyword])) if keyword in node else None


def _divisor(node: dict[str, Any], *, integer: bool, shared: bool) -> Fraction | None:
    divisor = _stated(node, "multipleOf")
    if divisor is None:
        return None
    if divisor.denominator & (divisor.denominator - 1):
        raise InputRefusedError(
            "`multipleOf` with a fraction that is not a sum of halves (0.5, 0.25 …) is not supported: "
            "readers divide in binary and disagree about its multiples."
        )
    if integer:
        divisor = Fraction(divisor.numerator)
    scaled = divisor * 10 ** (divisor.denominator.bit_length() - 1)
    largest = LARGEST_SHARED_DIVISOR if shared else LARGEST_DIVISOR
    if scaled > largest or divisor.denominator > 1 << DECIMALS:
        raise InputRefusedError(f"`multipleOf` beyond {largest} is not supported here.")
    return divisor


def _plain(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
