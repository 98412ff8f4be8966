"""What a JSON schema says of numbers, made exact: within it, every text is read back as an allowed number.

Readers take numbers for doubles. A decimal just below an exclusive bound may round onto it, and one
of hundreds of digits may become infinity, so bounds are drawn in to decimals that doubles tell apart
(15 digits), and the texts are kept short. That also ends the digits of a model that would go on for ever.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

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
    if integer:
        low, high = _integer_bounds(node, bounded or divisor is not None)
    else:
        low, high = _number_bounds(node, bounded or divisor is not None)
    if low is not None and high is not None:
        if low > high:
            if integer or _nothing_between(node):
                return None
            raise InputRefusedError("The bounds of a number are too close to each other.")
        if divisor is not None and math.ceil(low / divisor) * divisor > high:
            return None
    kept: dict[str, Any] = {}
    if low is not None:
        kept["minimum"] = _plain(low)
    if high is not None:
        kept["maximum"] = _plain(high)
    if divisor is not None:
        kept["multipleOf"] = _plain(divisor)
    elif bounded and not integer and low is not None and high is not None:
        unit = Fraction(1, 10**DECIMALS)
        if math.ceil(low / unit) * unit <= high:
            kept["multipleOf"] = float(unit)
    return kept


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


def _integer_bounds(node: dict[str, Any], bounded: bool) -> tuple[Fraction | None, Fraction | None]:
    lows = [math.ceil(bound) for bound in [_stated(node, "minimum")] if bound is not None]
    highs = [math.floor(bound) for bound in [_stated(node, "maximum")] if bound is not None]
    above, below = _stated(node, "exclusiveMinimum"), _stated(node, "exclusiveMaximum")
    lows += [] if above is None else [math.floor(above) + 1]
    highs += [] if below is None else [math.ceil(below) - 1]
    return _limited(lows, highs, LARGEST_INTEGER, bounded)


def _number_bounds(node: dict[str, Any], bounded: bool) -> tuple[Fraction | None, Fraction | None]:
    low, high = _stated(node, "minimum"), _stated(node, "maximum")
    above, below = _stated(node, "exclusiveMinimum"), _stated(node, "exclusiveMaximum")
    lows = [] if low is None else [_inside(low, up=True, strict=False)]
    highs = [] if high is None else [_inside(high, up=False, strict=False)]
    lows += [] if above is None else [_inside(above, up=True, strict=True)]
    highs += [] if below is None else [_inside(below, up=False, strict=True)]
    return _limited(lows, highs, LARGEST_NUMBER, bounded)


def _nothing_between(node: dict[str, Any]) -> bool:
    """Return whether the bounds of ``node`` exclude every number."""
    lows = [(bound, False) for bound in [_stated(node, "minimum")] if bound is not None]
    lows += [(bound, True) for bound in [_stated(node, "exclusiveMinimum")] if bound is not None]
    highs = [(bound, True) for bound in [_stated(node, "maximum")] if bound is not None]
    highs += [(bound, False) for bound in [_stated(node, "exclusiveMaximum")] if bound is not None]
    if not lows or not highs:
        return False
    (low, above), (high, at_most) = max(lows), min(highs)
    return low > high or (low == high and (above or not at_most))


def _limited(
    lows: list[Any], highs: list[Any], largest: int, bounded: bool
) -> tuple[Fraction | None, Fraction | None]:
    """Return the tightest bounds; beyond ``largest`` readers disagree about which number a text is."""
    if (lows and max(lows) > largest) or (highs and min(highs) < -largest):
        raise InputRefusedError(f"Bounds of numbers beyond {largest} are not supported.")
    if bounded or (lows and max(lows) < -largest):
        lows = [*lows, -largest]
    if bounded or (highs and min(highs) > largest):
        highs = [*highs, largest]
    return (Fraction(max(lows)) if lows else None, Fraction(min(highs)) if highs else None)


def _inside(bound: Fraction, *, up: bool, strict: bool) -> Fraction:
    """Return the nearest decimal of few digits that is not beyond ``bound``; not the bound itself if ``strict``."""
    whole_digits = len(str(abs(math.trunc(bound)))) if abs(bound) >= 1 else 0
    unit = Fraction(1, 10 ** max(0, min(DIGITS - whole_digits, DECIMALS)))
    if not strict and (bound / unit).denominator == 1:
        return bound
    steps = math.floor(bound / unit) + 1 if up else math.ceil(bound / unit) - 1
    if not strict:
        steps = math.ceil(bound / unit) if up else math.floor(bound / unit)
    return steps * unit


def _plain(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
