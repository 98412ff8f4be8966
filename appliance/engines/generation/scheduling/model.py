"""A decoder graph of a pack, run over the rows of a KV cache.

Inputs of the graph: ``input_ids`` int64 [B, S]; ``seqlens_k`` int32 [B], the tokens of each row
after the call, minus 1; ``total_sequence_length`` int32, the largest number of tokens after the
call; ``out_index`` int64 [R], the rows of the flattened [B * S] whose logits are wanted; per layer
``past_k.i`` and ``past_v.i`` float32 [B, kv_heads, capacity, head_dim]. Outputs: ``logits``
float32 [R, vocab_size], and ``present_k.i`` and ``present_v.i``, bound to the memory of the past.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Logits
from appliance.engines.generation.scheduling.kv_cache import KvCache
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder

# The most tokens of one prefill run: running streams wait while it runs, so it must be short.
CHUNK_TOKENS = 128
# The most rows of one decode run.
DECODE_ROWS = 16
# The attention kernel works through its rows by so many and rounds differently where one is left over.
TILE = 128
# Logits of every token of a chunk take this much memory at most.
SCORE_BYTES = 32 << 20
# A binding is made in 0.7 ms and holds some kilobytes for every layer.
MAX_BINDINGS = 64

Binding = Any  # onnxruntime has no types


def piece_of(remaining: int, chunk_tokens: int) -> int:
    """Return how many of a prompt's ``remaining`` tokens to compute next.

    At most ``chunk_tokens`` (at least 2), and such that no tile of the kernel holds a single token, now or
    at the end: so the cache gets the same bits wherever a prompt was cut before (measured).
    """
    if remaining <= 2:
        return remaining
    piece = min(remaining, chunk_tokens)
    while piece % TILE == 1 or remaining - piece == 1:
        piece -= 1
    return max(piece, 2)


class DecoderModel:
    """One ONNX Runtime session over ``cache``. Only one thread may use it.

    Returned logits are views of one buffer, which the caller may change: they hold until the next call.
    """

    def __init__(
        self,
        graph: Path,
        decoder: Decoder,
        cache: KvCache,
        cores: Cores,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        threads: int = 0,
    ) -> None:
        """Open ``graph`` with ``threads`` (0 = all cores).

        Raises PackError when it is not a graph as ``decoder`` describes it.
        """
        self._cache = cache
        self._cores = cores
        self._threads = threads
        self._vocab_size = decoder.vocab_size
        self._layers = decoder.layers
        self.chunk_tokens = chunk_tokens
        self.score_tokens = max(2, min(chunk_tokens, SCORE_BYTES // (4 * decoder.vocab_size)))
        self._total_shape: tuple[int, ...] = (1,)
        self._session = self._open(graph)
        self._input_ids = np.zeros(max(chunk_tokens, DECODE_ROWS), np.int64)
        self._seqlens_k = np.zeros(DECODE_ROWS, np.int32)
        self._total = np.zeros(1, np.int32)
        self._out_index = np.arange(max(self.score_tokens, DECODE_ROWS), dtype=np.int64)
        self._last_index = np.zeros(1, np.int64)
        self._logits = np.zeros((DECODE_ROWS, decoder.vocab_size), np.float32)
        self._scores: NDArray[np.float32] | None = None
        self._bindings: OrderedDict[tuple[int, int, bool], Binding] = OrderedDict()

    def prefill(self, row: int, ids: NDArray[np.int64], start: int, *, priority: int = 0) -> Logits:
        """Append ``ids`` [S], at most ``chunk_tokens``, to the ``start`` tokens of ``row``.

        Returns the logits [vocab_size] after the last of them.
        """
        self._last_index[0] = ids.size - 1
        self._append(row, ids, start, self._last_index, self._logits, priority)
        return self._logits[:1].reshape(-1)

    def score(self, row: int, ids: NDArray[np.int64], start: int, *, priority: int = 0) -> Logits:
        """Append ``ids`` [S], at most ``score_tokens``, as ``prefill`` does.

        Returns the logits [S, vocab_size] after every one of them.
        """
        if self._scores is None:
            self._scores = np.zeros((self.score_tokens, self._vocab_size), np.float32)
        self._append(row, ids, start, self._out_index[: ids.size], self._scores, priority)
        return self._scores[: ids.size]

    def forget_scores(self) -> None:
        """Give back the memory that ``score`` took."""
        self._scores = None

    def decode(
        self, first_row: int, last_tokens: list[int], lengths: list[int], *, priority: int = 0
    ) -> Logits:
        """Append one token to each of B neighbouring rows, at most DECODE_ROWS, which hold ``lengths`` [B] tokens.

        Returns the logits [B, vocab_size] after ``last_tokens`` [B].
        """
        batch = len(last_tokens)
        longest = max(lengths)
        self._check_room(longest + 1)
        binding = self._binding(first_row, batch, decoding=True)
        self._input_ids[:batch] = last_tokens
        self._seqlens_k[:batch] = lengths
        self._total[0] = longest + 1
        self._run(binding, priority)
        return self._logits[:batch]

    def _append(
        self,
        row: int,
        ids: NDArray[np.int64],
        start: int,
        out_index: NDArray[np.int64],
        logits: Logits,
        priority: int,
    ) -> None:
        count = ids.size
        self._check_room(start + count)
        binding = self._binding(row, 1, decoding=False)
        # What varies from chunk to chunk: its length, and whose logits are wanted.
        _bind_input(binding, "input_ids", self._input_ids, (1, count))
        _bind_input(binding, "out_index", out_index, (out_index.size,))
        _bind_output(binding, "logits", logits.ctypes.data, (out_index.size, self._vocab_size))
        self._input_ids[:count] = ids
        self._seqlens_k[0] = start + count - 1
        self._total[0] = start + count
        self._run(binding, priority)

    def _run(self, binding: Binding, priority: int) -> None:
        with self._cores.lease(priority):
            self._session.run_with_iobinding(binding)

    def _binding(self, row: int, batch: int, *, decoding: bool) -> Binding:
        """Return the binding of ``batch`` rows from ``row`` on; that of a prefill lacks what varies."""
        key = (row, batch, decoding)
        binding = self._bindings.get(key)
        if binding is not None:
            self._bindings.move_to_end(key)
            return binding
        binding = self._session.io_binding()
        _bind_input(binding, "seqlens_k", self._seqlens_k, (batch,))
        _bind_input(binding, "total_sequence_length", self._total, self._total_shape)
        shape = (batch, *self._cache.row_shape)
        for place, address in enumerate(self._cache.addresses(row)):
            name = f"{'kv'[place % 2]}.{place // 2}"
            binding.bind_input(f"past_{name}", "cpu", 0, np.float32, list(shape), address)
            _bind_output(binding, f"present_{name}", address, shape)
        if decoding:
            _bind_input(binding, "input_ids", self._input_ids, (batch, 1))
            _bind_input(binding, "out_index", self._out_index, (batch,))
            _bind_output(binding, "logits", self._logits.ctypes.data, (batch, self._vocab_size))
        self._bindings[key] = binding
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def _check_room(self, tokens: int) -> None:
        if tokens > self._cache.capacity:
            raise EngineError("The sequence is longer than its place in the KV cache.")

    def _open(self, graph: Path) -> Any:
        """Open a graph and compare its inputs with what is bound."""
        try:
            session = self._cores.session(graph, self._threads)
        except Exception as error:  # onnxruntime's errors share no other base
            raise PackError(f"{graph.name} cannot be loaded: {error}") from error
        inputs = {node.name: node for node in session.get_inputs()}
        sides = {f"past_{side}.{layer}" for side in "kv" for layer in range(self._layers)}
        if set(inputs) != sides | {"input_ids", "seqlens_k", "total_sequence_length", "out_index"}:
            raise PackError(f"{graph.name} is not a decoder graph of {self._layers} layers.")
        kv_heads, _, head_dim = self._cache.row_shape
        past = inputs["past_k.0"].shape
        logits = next((node.shape for node in session.get_outputs() if node.name == "logits"), [0])
        stated = [(past[1], kv_heads), (past[3], head_dim), (logits[-1], self._vocab_size)]
        # A dimension without a number is a name; the run itself checks it.
        if any(isinstance(found, int) and found != wanted for found, wanted in stated):
            raise PackError(f"{graph.name} does not have the dimensions that its pack states.")
        self._total_shape = (1,) if inputs["total_sequence_length"].shape else ()
        return session


def _bind_input(binding: Binding, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Bind the first elements of ``array`` as an input of ``shape``; the caller keeps the array."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, list(shape), array.ctypes.data)


def _bind_output(binding: Binding, name: str, address: int, shape: tuple[int, ...]) -> None:
    """Bind the memory at ``address`` as a float32 output of ``shape``; the caller keeps it."""
    binding.bind_output(name, "cpu", 0, np.float32, list(shape), address)
