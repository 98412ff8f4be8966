"""Whatever is drawn under a random constraint fulfils it."""

from __future__ import annotations

import json
import random
import re
import warnings
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.compiler import ConstraintCompiler, JsonSchema, Regex
from tests.engines.generation.constraints.samples import Walker, document, random_pattern, wild_document

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
BATCHES = 10
PER_BATCH = 20


def faults(schema: Any, text: str) -> list[str]:
    """What a validator says against ``text``."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    return [error.message for error in validator.iter_errors(json.loads(text))]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_texts_under_random_schemas_are_valid(
    compiler: ConstraintCompiler, walker: Walker, batch: int
) -> None:
    ended = 0
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        schema = document(random.Random(seed))
        constraint = compiler.compile(JsonSchema(schema))
        text = walker.text(constraint, seed, free_steps=10 * (seed % 4))
        if text is not None:
            ended += 1
            assert faults(schema, text) == [], (schema, text)
    assert ended >= PER_BATCH - 2


@pytest.mark.parametrize("batch", range(BATCHES))
def test_texts_under_random_expressions_match(
    compiler: ConstraintCompiler, walker: Walker, batch: int
) -> None:
    ended = 0
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        pattern = random_pattern(random.Random(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # [a&&b] may one day mean something else
            expression = re.compile(pattern)
        text = walker.text(compiler.compile(Regex(pattern)), seed, free_steps=10 * (seed % 4))
        if text is not None:
            ended += 1
            assert expression.fullmatch(text), (pattern, text)
    assert ended >= PER_BATCH - 4


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_keywords_thrown_together_are_refused_or_obeyed(
    compiler: ConstraintCompiler, walker: Walker, seed: int
) -> None:
    schema = wild_document(random.Random(seed))
    try:
        constraint = compiler.compile(JsonSchema(schema))
    except InputRefusedError:
        return
    text = walker.text(constraint, seed, free_steps=seed % 30)
    assert text is None or faults(schema, text) == [], (schema, text)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pattern=st.text(alphabet="ab01^$|()[]{}*+?.,-\\dwsDWSbBxuU:=<>!&~é\n", max_size=20))
def test_any_text_for_an_expression_is_refused_or_obeyed(
    compiler: ConstraintCompiler, walker: Walker, pattern: str
) -> None:
    try:
        text = walker.text(compiler.compile(Regex(pattern)), 0, free_steps=5)
    except InputRefusedError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            expression = re.compile(pattern)
        except re.error:
            return  # of ECMAScript alone
    assert text is None or expression.fullmatch(text), (pattern, text)
