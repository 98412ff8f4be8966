"""Reranking: how well each document answers a query, by a cross-encoder that reads both together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from appliance.engines.cores import Cores
from appliance.engines.encoding.batching import Batcher
from appliance.engines.encoding.engine import EncodingEngine
from appliance.engines.encoding.forward import Floats, TokenSequence, open_graph, run_probe
from appliance.engines.encoding.tokenizer import TextTokenizer, longest_first
from appliance.engines.errors import InputRefusedError
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest

# One request of the largest size (2048 pairs of 512 tokens) and as much again.
DEFAULT_QUEUE_TOKENS = 1 << 21


class Scores(NamedTuple):
    """``logits`` float32 [documents], in the order given; ``prompt_tokens`` counts every pair as it was read."""

    logits: Floats
    prompt_tokens: int


class RerankEngine(EncodingEngine):
    """One cross-encoder pack, loaded. Open it off the event loop, use it on one, close it in a thread."""

    def __init__(
        self,
        pack_dir: Path,
        manifest: Manifest,
        cores: Cores,
        *,
        max_queue_tokens: int = DEFAULT_QUEUE_TOKENS,
    ) -> None:
        """Load tokenizer and graph. Raises PackError when they do not fit the manifest."""
        encoder = manifest.encoder
        if manifest.task != "rerank" or encoder is None:
            raise PackError(f"{manifest.name} is not a reranking pack")
        self.context_length = manifest.context_length
        self._tokenizer = TextTokenizer(pack_dir / encoder.tokenizer)
        self.vocab_size = self._tokenizer.vocab_size
        self._template = self._tokenizer.pair_template()
        self._budget = self.context_length - self._template.special_tokens
        if self._budget < 3:
            raise PackError(
                f"{manifest.name} has a context of {self.context_length} tokens: no room for a pair"
            )
        graph = open_graph(pack_dir, encoder, cores)
        # A padded batch through the graph: a pack that cannot run is found out here, not by a client.
        one, two = (np.full(length, encoder.pad_token_id, dtype=np.int64) for length in (1, 2))
        run_probe(graph.logits, [self._template.join(one, one), self._template.join(one, two)])
        super().__init__(Batcher(graph.logits, cores, max_queue_tokens=max_queue_tokens, width=1))

    async def score(
        self,
        query: str,
        documents: list[str],
        *,
        priority: int = 0,
        admit: Callable[[int], object] = lambda _tokens: None,
    ) -> Scores:
        """Score every document against the query.

        ``admit`` is told the tokens of all pairs before the model reads any; what it raises ends the work.
        A pair longer than the context is cut, the longer text first: of long documents the beginning
        is read. Raises InputRefusedError without documents, OverloadedError when the queue is full,
        EngineError when the model fails.
        """
        if not documents:
            raise InputRefusedError("The list of documents is empty.", param="documents")
        pairs = await self._thread.run(self._pairs, query, documents)
        tokens = sum(len(pair.ids) for pair in pairs)
        admit(tokens)
        logits = await self._batcher.run(pairs, priority=priority)
        return Scores(logits[:, 0], tokens)

    def _pairs(self, query: str, documents: list[str]) -> list[TokenSequence]:
        # More than the budget is never kept of either text; one more shows that a text is longer.
        wanted = self._budget + 1
        (first,) = self._tokenizer.first_tokens([query], wanted)
        pairs = []
        for second in self._tokenizer.first_tokens(documents, wanted):
            keep_first, keep_second = longest_first(len(first), len(second), self._budget)
            pairs.append(self._template.join(first[:keep_first], second[:keep_second]))
        return pairs
