"""The same log-likelihoods from the pack's graph alone: one whole prompt at a time, plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from tests.evaluation.harness import Likelihood, Pair


class Reference:
    """A session on a decoder's graph."""

    def __init__(self, graph: Path) -> None:
        self._session = Cores(1).session(graph)

    def logprobs(self, tokens: list[int]) -> NDArray[np.float64]:
        """Return the log probabilities [len(tokens), vocab] of what follows each of ``tokens``."""
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "seqlens_k": np.array([len(tokens) - 1], np.int32),
            "total_sequence_length": np.array([len(tokens)], np.int32),
            "out_index": np.arange(len(tokens)),
        }
        for value in self._session.get_inputs():
            if value.name.startswith("past_"):
                _, heads, _, size = value.shape
                inputs[value.name] = np.zeros((1, heads, len(tokens), size), np.float32)
        logits = self._session.run(["logits"], inputs)[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return found

    def likelihood(self, pair: Pair) -> tuple[Likelihood, float]:
        """Return the pair's likelihood, and by how much the nearest greedy decision was made (nats)."""
        rows = self.logprobs(pair.context + pair.continuation)[len(pair.context) - 1 : -1]
        places = np.arange(len(rows))
        ordered = np.sort(rows, axis=1)
        margin = float((ordered[:, -1] - ordered[:, -2]).min())
        values = rows[places, pair.continuation]
        is_greedy = bool((rows.argmax(axis=1) == pair.continuation).all())
        return Likelihood(float(values.sum()), is_greedy), margin
