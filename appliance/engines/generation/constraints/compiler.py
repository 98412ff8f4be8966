"""Constraints on an answer's text: JSON schemas, regular expressions, choices and grammars.

They run on llguidance. It is fast, but reads what requests hold in its own way, and a grammar of
rules that go thousands deep overflows its stack; so everything is checked and written anew before
it gets there (the other modules of this folder), and it works under limits of its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import numpy as np

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.constraints import regex as constraint_regex
from appliance.engines.generation.constraints.calls import limits, reason, unpanicked, with_deep_stack
from appliance.engines.generation.constraints.gbnf import is_gbnf, lark_of
from appliance.engines.generation.constraints.lark import check_grammar, with_schemas
from appliance.engines.generation.constraints.schema import narrowed
from appliance.engines.generation.contract import Logits

# A space, or a line end and an indentation. Bounded, so that no model can go on with it for ever.
WHITESPACE = "\\x20|\\n(?:\\x20{0,32}|\\t{0,8})"
# Without "u": a name written with \u escapes would pass for another one.
ESCAPES = 'nrbtf\\"'

MAX_CHARACTERS = 1 << 18
MAX_OPTIONS = 10_000
MAX_OPTION_CHARACTERS = 1 << 16
CACHED = 16
# Steps tried on a new constraint, so that those which fail at once are refused before the first byte.
TRIED_STEPS = 16
# Ways to read the text so far. A step takes their square of time where a grammar is ambiguous; JSON is not,
# and needs four for each optional property.
GRAMMAR_ITEMS = 300
JSON_ITEMS = 2000


class JsonSchema(msgspec.Struct, frozen=True, tag=True):
    """JSON under a schema; ``whitespace_pattern`` is what may stand once between two of its tokens."""

    schema: dict[str, Any] | bool
    whitespace_pattern: str | None = None


class JsonObject(msgspec.Struct, frozen=True, tag=True):
    """Any JSON object."""


class Regex(msgspec.Struct, frozen=True, tag=True):
    """Texts that ``pattern`` matches from end to end."""

    pattern: str


class Choice(msgspec.Struct, frozen=True, tag=True):
    """Exactly one of the texts."""

    options: tuple[str, ...]


class Grammar(msgspec.Struct, frozen=True, tag=True):
    """Texts of a grammar from a request: Lark's notation with the rule ``start``, or GBNF with ``root``."""

    text: str


class LarkGrammar(msgspec.Struct, frozen=True, tag=True):
    """Texts of a grammar of our own in llguidance's dialect of Lark.

    It may refer to control tokens; its schemas after ``%json`` may come from requests.
    """

    text: str


ConstraintSpec = JsonSchema | JsonObject | Regex | Choice | Grammar | LarkGrammar


class ConstraintCompiler:
    """Compiles constraints for one vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer_json: str | Path, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        """``tokenizer_json`` is the tokenizer's file; it is read when first needed, or by ``warm``."""
        self._path = Path(tokenizer_json)
        self._eos_token_ids = list(eos_token_ids)
        self._vocab_size = vocab_size
        self._tokenizer: llguidance.LLTokenizer | None = None
        # One at a time: it takes a core.
        self._compiling = threading.Lock()
        self._looking = threading.Lock()
        self._compiled: OrderedDict[bytes, CompiledConstraint | InputRefusedError] = OrderedDict()

    def warm(self) -> None:
        """Read the tokenizer, which takes seconds for large vocabularies. Raises EngineError."""
        with self._compiling:
            self._vocabulary()

    def compile(self, spec: ConstraintSpec) -> CompiledConstraint:
        """Return the constraint of ``spec``. Takes time; call it off the event loop.

        Raises InputRefusedError with the reason for what is invalid, not supported, unsatisfiable or
        too complex, and EngineError when the tokenizer cannot be used.
        """
        try:
            written = repr(spec)
        except (ValueError, RecursionError):
            raise InputRefusedError("The constraint is nested too deeply, or has too long numbers.") from None
        if len(written) > MAX_CHARACTERS:
            raise InputRefusedError(f"A constraint may have at most {MAX_CHARACTERS} characters.")
        key = hashlib.sha256(written.encode("utf-8", "surrogatepass")).digest()
        found = self._known(key)
        if found is None:
            with self._compiling:
                found = self._known(key) or self._compile(spec)
            with self._looking:
                self._compiled[key] = found
                if len(self._compiled) > CACHED:
                    self._compiled.popitem(last=False)
        if isinstance(found, InputRefusedError):
            raise InputRefusedError(found.message)
        return found

    def _known(self, key: bytes) -> CompiledConstraint | InputRefusedError | None:
        with self._looking:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
            return found

    def _compile(self, spec: ConstraintSpec) -> CompiledConstraint | InputRefusedError:
        """Return the constraint, or why it is refused. Raises EngineError."""
        try:
            return self._constraint(spec)
        except InputRefusedError as error:
            return error

    def _constraint(self, spec: ConstraintSpec) -> CompiledConstraint:
        grammar = _grammar(spec)
        bounds = limits(GRAMMAR_ITEMS if isinstance(spec, Grammar) else JSON_ITEMS)
        vocabulary = self._vocabulary()
        matcher = with_deep_stack(
            lambda: llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=bounds)
        )
        constraint = CompiledConstraint(matcher, vocabulary.vocab_size)
        if matcher.is_error():
            raise InputRefusedError(reason(matcher.get_error()))
        constraint.try_out()
        return constraint

    def _vocabulary(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            try:
                self._tokenizer = unpanicked(
                    lambda: llguidance.LLTokenizer(
                        self._path.read_text("utf-8"), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
                    )
                )
            except (OSError, ValueError, InputRefusedError) as error:
                raise EngineError("The model's tokenizer cannot be used for constrained answers.") from error
        return self._tokenizer


class CompiledConstraint:
    """A compiled constraint; implements ``contract.Constraint``."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def start(self) -> MatcherState:
        """Return the state of a sequence that has produced nothing yet."""
        return MatcherState(self._matcher.deep_copy(), self._vocab_size)

    def try_out(self) -> None:
        """Take a few steps, which also prepares the first one. Raises InputRefusedError when there are none."""
        state = MatcherState(self._matcher, self._vocab_size)
        logits = np.empty(self._vocab_size, np.float32)
        random = np.random.default_rng(0)
        for step in range(TRIED_STEPS):
            logits.fill(0)
            state.mask(logits)
            if step == 0:
                state = state.copy()
            if state.finished:
                return
            allowed = np.flatnonzero(logits == 0)
            state.accept(int(random.choice(allowed)))


class MatcherState:
    """Where one sequence stands in a constraint; implements ``contract.ConstraintState``."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros((vocab_size + 31) // 32, np.uint32)

    @property
    def finished(self) -> bool:
        """Whether nothing but the end of the sequence may follow."""
        return self._matcher.is_stopped()

    def mask(self, logits: Logits) -> None:
        """Set the logits of what must not come next to -inf, in place; they may be more than the vocabulary.

        Raises InputRefusedError when the constraint turns out too complex or leads nowhere.
        """
        bits = self._bits
        unpanicked(lambda: self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes))
        self._check()
        np.invert(bits, out=bits)
        count = min(self._vocab_size, logits.shape[0])
        forbidden = np.unpackbits(bits.view(np.uint8), count=count, bitorder="little").view(np.bool_)
        np.copyto(logits[:count], -np.inf, where=forbidden)
        logits[count:] = -np.inf

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed. Raises EngineError when it was not."""
        if not unpanicked(lambda: self._matcher.consume_token(token_id)):
            self._check()

    def copy(self) -> MatcherState:
        """Return the same state for another sequence to go on from."""
        return MatcherState(self._matcher.deep_copy(), self._vocab_size)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputRefusedError(reason(self._matcher.get_error()))


def _grammar(spec: ConstraintSpec) -> str:
    """Return the grammar of ``spec`` as llguidance takes it. Raises InputRefusedError."""
    match spec:
        case JsonSchema():
            pattern = spec.whitespace_pattern
            whitespace = WHITESPACE if pattern is None else constraint_regex.json_whitespace(pattern)
            return _json(narrowed(spec.schema), whitespace)
        case JsonObject():
            return _json(narrowed({"type": "object"}), WHITESPACE)
        case Regex():
            return _regex(constraint_regex.whole(spec.pattern))
        case Choice():
            if len(spec.options) > MAX_OPTIONS or sum(map(len, spec.options)) > MAX_OPTION_CHARACTERS:
                raise InputRefusedError(
                    f"A choice may have at most {MAX_OPTIONS} options "
                    f"and {MAX_OPTION_CHARACTERS} characters in all."
                )
            return _regex(f"(?:{'|'.join(map(constraint_regex.literal, spec.options))})")
        case Grammar():
            text = lark_of(spec.text) if is_gbnf(spec.text) else spec.text
            check_grammar(text)
            return llguidance.LLMatcher.grammar_from_lark(text)
        case LarkGrammar():
            return llguidance.LLMatcher.grammar_from_lark(with_schemas(spec.text, _embedded))


def _json(schema: dict[str, Any], whitespace: str) -> str:
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": whitespace, "json_allowed_escapes": ESCAPES}
    )


def _embedded(schema: Any) -> dict[str, Any]:
    """Return the schema inside a grammar of our own; its ``x-guidance`` may tell the whitespace."""
    layout: dict[str, Any] = {}
    if isinstance(schema, dict):
        schema = dict(schema)
        layout = schema.pop("x-guidance", {})
    whitespace = layout.get("whitespace_pattern", WHITESPACE)
    return {
        **narrowed(schema),
        "x-guidance": {"whitespace_pattern": whitespace, "json_allowed_escapes": ESCAPES},
    }


def _regex(pattern: str) -> str:
    if pattern in ("", "(?:)"):
        return llguidance.LLMatcher.grammar_from_lark('start: ""')
    return llguidance.LLMatcher.grammar_from_regex(pattern)
