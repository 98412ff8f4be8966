"""The narrowed keywords of numbers allow nothing more, and of a range with room something."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.numbers import LARGEST_INTEGER, allows, numbers

BOUNDS = st.one_of(
    st.integers(-(10**17), 10**17), st.floats(-1e17, 1e17), st.decimals(-1000, 1000, places=3).map(float)
)
NODES = st.fixed_dictionaries(
    {},
    optional={
        "minimum": BOUNDS,
        "maximum": BOUNDS,
        "exclusiveMinimum": BOUNDS,
        "exclusiveMaximum": BOUNDS,
        "multipleOf": st.sampled_from([1, 2, 7, 1000, 0.5, 2.5, 0.125]),
    },
)


def narrowed(node: dict[str, Any], *, integer: bool, bounded: bool) -> dict[str, Any] | None:
    try:
        return numbers(node, integer=integer, bounded=bounded)
    except InputRefusedError:
        return None


@given(node=NODES, integer=st.booleans(), bounded=st.booleans(), value=BOUNDS)
def test_what_the_narrowed_keywords_allow_is_allowed(
    node: dict[str, Any], integer: bool, bounded: bool, value: float
) -> None:
    found = narrowed(node, integer=integer, bounded=bounded)
    if found is None:
        return
    validator = jsonschema.Draft202012Validator({**node, "type": "integer" if integer else "number"})
    ends = [found[name] for name in ("minimum", "maximum") if name in found]
    for each in [value, round(value, 3), *ends]:
        if (not integer or float(each).is_integer()) and allows(found, each):
            assert validator.is_valid(int(each) if integer else each)


@given(node=NODES, integer=st.booleans())
def test_alone_numbers_have_ends_and_few_digits(node: dict[str, Any], integer: bool) -> None:
    found = narrowed(node, integer=integer, bounded=True)
    if found is None:
        return
    lows = [value for name, value in found.items() if name.lower().endswith("minimum")]
    highs = [value for name, value in found.items() if name.lower().endswith("maximum")]
    assert len(lows) == len(highs) == 1
    assert -LARGEST_INTEGER <= lows[0] <= highs[0] <= LARGEST_INTEGER
    assert integer or found["multipleOf"] > 0


def test_integers_end_at_whole_multiples() -> None:
    node = {"exclusiveMinimum": 4.5, "maximum": 21, "multipleOf": 2.5}
    assert numbers(node, integer=True, bounded=True) == {"minimum": 5, "maximum": 20, "multipleOf": 5}


def test_exclusive_bounds_stay_out() -> None:
    assert numbers({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, integer=False, bounded=True) == {
        "minimum": 1e-9,
        "exclusiveMaximum": 1,
        "multipleOf": 1e-9,
    }


def test_an_empty_range_allows_nothing() -> None:
    assert numbers({"minimum": 2, "exclusiveMaximum": 2}, integer=False, bounded=False) is None
    assert numbers({"minimum": 1, "maximum": 6, "multipleOf": 7}, integer=True, bounded=True) is None
