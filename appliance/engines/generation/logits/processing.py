"""What a request does to the logits before a token is drawn: bias, constraint, minimum, penalties.

The order is the contract's, and it defines every number that a client sees: logit bias, the
constraint's mask, end and stop tokens forbidden below the minimum, repetition penalty, then
frequency and presence penalties. Log probabilities are taken after these steps.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from appliance.engines.generation.contract import GenerationRequest, Logits

NEVER = np.float32(-np.inf)


class LogitsProcessor:
    """The steps for one sequence: ``process`` its logits in place, then ``accept`` the token chosen."""

    def __init__(self, request: GenerationRequest, eos_token_ids: frozenset[int], vocab_size: int) -> None:
        """Prepare the steps that ``request`` asks for; the others cost nothing."""
        sampling = request.sampling
        self._bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.intp)
        self._bias = np.array([value for _, value in sampling.logit_bias], dtype=np.float32)
        ignored = request.ignore_eos and request.constraint is None
        ending = (frozenset() if ignored else eos_token_ids) | request.stop_token_ids
        self._ending = np.array(sorted(it for it in ending if 0 <= it < vocab_size), dtype=np.intp)
        self._min_tokens = request.min_tokens
        self._constraint = None if request.constraint is None else request.constraint.start()
        self._repetition = np.float32(sampling.repetition_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._produced = 0
        self._seen = _TokenCounts(vocab_size) if self._repetition != 1 else None
        self._output = _TokenCounts(vocab_size) if self._frequency or self._presence else None
        if self._seen is not None:
            self._seen.add_all(request.prompt)

    def process(self, logits: Logits) -> None:
        """Apply all steps to ``logits`` [vocab_size]. Raises EngineError when the constraint fails."""
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._constraint is not None:
            self._constraint.mask(logits)
        if self._produced < self._min_tokens:
            self._forbid_ending(logits)
        if self._seen is not None:
            ids = self._seen.ids
            values = logits[ids]
            logits[ids] = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._output is not None:
            ids = self._output.ids
            logits[ids] -= self._frequency * self._output.counts[ids] + self._presence

    def accept(self, token_id: int) -> None:
        """Go on by ``token_id``. Raises EngineError when the constraint fails."""
        self._produced += 1
        if self._seen is not None:
            self._seen.add(token_id)
        if self._output is not None:
            self._output.add(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def fork(self) -> LogitsProcessor:
        """Return the same state for another sequence to go on from."""
        other = object.__new__(LogitsProcessor)
        other.__dict__.update(self.__dict__)
        other._seen = None if self._seen is None else self._seen.copy()
        other._output = None if self._output is None else self._output.copy()
        other._constraint = None if self._constraint is None else self._constraint.copy()
        return other

    def _forbid_ending(self, logits: Logits) -> None:
        if self._constraint is not None and self._constraint.finished:
            return  # a text that cannot go on must end, whatever the minimum
        kept = logits[self._ending]
        logits[self._ending] = NEVER
        if self._constraint is not None and logits.max() == NEVER:
            logits[self._ending] = kept


class _TokenCounts:
    """How often each token id occurred, and which ones did."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, dtype=np.float32)
        self._ids = np.empty(64, dtype=np.intp)
        self._size = 0

    @property
    def ids(self) -> NDArray[np.intp]:
        return self._ids[: self._size]

    def add(self, token_id: int) -> None:
        if not self.counts[token_id]:
            if self._size == self._ids.size:
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._ids[self._size] = token_id
            self._size += 1
        self.counts[token_id] += 1

    def add_all(self, token_ids: Items[int]) -> None:
        ids, counts = np.unique(np.asarray(token_ids, dtype=np.intp), return_counts=True)
        self.counts[ids] += counts.astype(np.float32)
        self._ids, self._size = np.flatnonzero(self.counts), int(np.count_nonzero(self.counts))

    def copy(self) -> _TokenCounts:
        other = object.__new__(_TokenCounts)
        other.counts, other._ids, other._size = self.counts.copy(), self._ids.copy(), self._size
        return other
