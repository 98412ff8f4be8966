"""Embeddings: token ids in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from appliance.engines.cores import Cores
from appliance.engines.encoding.batching import Batcher
from appliance.engines.encoding.engine import EncodingEngine
from appliance.engines.encoding.forward import Floats, Ids, TokenSequence, open_graph, run_probe
from appliance.engines.encoding.tokenizer import TextTokenizer
from appliance.engines.errors import InputRefusedError
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest

DEFAULT_QUEUE_TOKENS = 1 << 18


class EmbeddingEngine(EncodingEngine):
    """One embedding pack, loaded. Open it off the event loop, use it on one, close it in a thread.

    ``context_length`` is the most tokens of one input, special tokens included; ``dimensions`` the
    width of a vector; ``vocab_size`` the bound of token ids.
    """

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
        if manifest.task != "embedding" or encoder is None or encoder.dimensions is None:
            raise PackError(f"{manifest.name} is not an embedding pack")
        if not manifest.context_length:
            raise PackError(f"{manifest.name} does not say its context length")
        self.context_length = manifest.context_length
        self.dimensions = encoder.dimensions
        self._tokenizer = TextTokenizer(pack_dir / encoder.tokenizer)
        self.vocab_size = self._tokenizer.vocab_size
        graph = open_graph(pack_dir, encoder, cores)
        # A padded batch through the graph: a pack that cannot run is found out here, not by a client.
        tokens = [np.full(length, encoder.pad_token_id, dtype=np.int64) for length in (1, 2)]
        probe = run_probe(graph.vectors, [TokenSequence(ids) for ids in tokens])
        if probe.shape != (2, self.dimensions):
            raise PackError(
                f"{manifest.name} gives vectors of shape {probe.shape[1:]}, not {self.dimensions}"
            )
        super().__init__(
            Batcher(graph.vectors, cores, max_queue_tokens=max_queue_tokens, width=self.dimensions)
        )

    async def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text with the model's special tokens, of whatever length."""
        return await self._thread.run(self._tokenize, texts)

    async def embed(self, inputs: Sequence[Sequence[int]], *, priority: int = 0) -> Floats:
        """Return one vector of length 1 per input, in order, float32 [len(inputs), dimensions].

        Inputs are used exactly as given: no special tokens are added. Raises InputRefusedError for an
        input that is empty, longer than the context or outside the vocabulary, OverloadedError when
        the queue is full, EngineError when the model fails.
        """
        sequences = await self._thread.run(self._check, inputs)
        return await self._batcher.run(sequences, priority=priority)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode(texts)]

    def _check(self, inputs: Sequence[Sequence[int]]) -> list[TokenSequence]:
        if not inputs:
            raise InputRefusedError("The input is empty.", param="input")
        return [TokenSequence(self._ids(ids)) for ids in inputs]

    def _ids(self, ids: Sequence[int]) -> Ids:
        if not ids:
            raise InputRefusedError("The input is empty.", param="input")
        if len(ids) > self.context_length:
            raise InputRefusedError(
                f"This model's maximum context length is {self.context_length} tokens. However, you requested "
                f"{len(ids)} tokens in the input for embedding generation. Please reduce the length of the input.",
                code="context_length_exceeded",
                param="input",
            )
        try:
            tokens = np.array(ids, dtype=np.int64)
        except OverflowError:
            tokens = np.array([-1], dtype=np.int64)
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            strange = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise InputRefusedError(
                f"Token id {strange} is out of vocabulary: this model's ids are 0 to {self.vocab_size - 1}.",
                param="input",
            )
        return tokens
