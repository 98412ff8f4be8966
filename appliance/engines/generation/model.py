"""The decoder graph of a pack, run over the rows of a KV cache.

Inputs of the graph: ``input_ids`` int64 [B, S]; ``seqlens_k`` int32 [B], the tokens of each row
after the call, minus 1; ``total_sequence_length`` int32, the largest number of tokens after the
call; ``out_index`` int64 [R], the rows of the flattened [B * S] whose logits are wanted; per layer
``past_k.i`` and ``past_v.i`` float32 [B, kv_heads, capacity, head_dim]. Outputs: ``logits``
float32 [R, vocab_size], and ``present_k.i`` and ``present_v.i``, bound to the memory of the past.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError
from appliance.engines.generation.kv_cache import KvCache
from appliance.engines.generation.sampling import Logits
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder

# Running streams wait while a chunk runs, so it must be short; throughput hardly grows beyond this.
# Fixed, because the attention kernel rounds differently for some lengths (1 and 129, measured):
# cut elsewhere under load, a prompt would not give the same tokens every time.
CHUNK_TOKENS = 128

Binding = Any  # onnxruntime has no types


class DecoderModel:
    """One ONNX Runtime session over ``cache``. Only one thread may use it.

    Returned logits are views of one buffer: they hold until the next call.
    """

    def __init__(self, graph: Path, decoder: Decoder, cache: KvCache, cores: Cores) -> None:
        """Open the session. Raises PackError when the graph is not the one that ``decoder`` describes."""
        self._cache = cache
        self._cores = cores
        self._vocab_size = decoder.vocab_size
        self._layers = decoder.layers
        try:
            self._session = cores.session(graph)
        except Exception as error:  # onnxruntime's errors share no other base
            raise PackError(f"{graph.name} cannot be loaded: {error}") from error
        total_shape = self._check_interface(graph.name)
        self._input_ids = np.zeros(max(CHUNK_TOKENS, cache.rows), np.int64)
        self._seqlens_k = np.zeros(cache.rows, np.int32)
        self._total = np.zeros(total_shape, np.int32)
        self._out_index = np.arange(cache.rows, dtype=np.int64)
        self._last_index = np.zeros(1, np.int64)
        self._logits = np.zeros((cache.rows, decoder.vocab_size), np.float32)
        self._decode_bindings: dict[int, Binding] = {}
        self._prefill_bindings: dict[int, Binding] = {}

    def prefill(self, row: int, ids: NDArray[np.int64], start: int, *, priority: int = 0) -> Logits:
        """Append ``ids`` [S], at most CHUNK_TOKENS, to the ``start`` tokens of ``row``.

        Returns the logits [vocab_size] after the last of them.
        """
        count = ids.size
        self._check_room(start + count)
        binding = self._prefill_bindings.get(row)
        if binding is None:
            binding = self._prefill_bindings[row] = self._bind(row, 1, self._last_index)
        _bind_input(binding, "input_ids", self._input_ids, (1, count))  # the chunk's length varies
        self._input_ids[:count] = ids
        self._seqlens_k[0] = start + count - 1
        self._total[...] = start + count
        self._last_index[0] = count - 1
        self._run(binding, priority)
        return self._logits[:1].reshape(-1)

    def decode(self, last_tokens: list[int], lengths: list[int], *, priority: int = 0) -> Logits:
        """Append one token to each of the first B rows, which hold ``lengths`` [B] tokens.

        Returns the logits [B, vocab_size] after ``last_tokens`` [B].
        """
        batch = len(last_tokens)
        longest = max(lengths)
        self._check_room(longest + 1)
        binding = self._decode_bindings.get(batch)
        if binding is None:
            binding = self._decode_bindings[batch] = self._bind(0, batch, self._out_index)
            _bind_input(binding, "input_ids", self._input_ids, (batch, 1))
        self._input_ids[:batch] = last_tokens
        self._seqlens_k[:batch] = lengths
        self._total[...] = longest + 1
        self._run(binding, priority)
        return self._logits[:batch]

    def _run(self, binding: Binding, priority: int) -> None:
        with self._cores.lease(priority):
            self._session.run_with_iobinding(binding)

    def _bind(self, row: int, batch: int, out_index: NDArray[np.int64]) -> Binding:
        """Bind ``batch`` rows from ``row`` on; only ``input_ids`` is left to the caller. Costs 0.7 ms."""
        binding = self._session.io_binding()
        _bind_input(binding, "seqlens_k", self._seqlens_k, (batch,))
        _bind_input(binding, "total_sequence_length", self._total, self._total.shape)
        _bind_input(binding, "out_index", out_index, (batch,))
        shape = [batch, *self._cache.row_shape]
        for place, address in enumerate(self._cache.addresses(row)):
            name = f"{'kv'[place % 2]}.{place // 2}"
            binding.bind_input(f"past_{name}", "cpu", 0, np.float32, shape, address)
            binding.bind_output(f"present_{name}", "cpu", 0, np.float32, shape, address)
        logits_shape = [batch, self._vocab_size]
        binding.bind_output("logits", "cpu", 0, np.float32, logits_shape, self._logits.ctypes.data)
        return binding

    def _check_room(self, tokens: int) -> None:
        if tokens > self._cache.capacity:
            raise EngineError("The sequence is longer than its place in the KV cache.")

    def _check_interface(self, name: str) -> tuple[int, ...]:
        """Compare the graph's inputs with what is bound; return the shape of ``total_sequence_length``."""
        inputs = {node.name: node for node in self._session.get_inputs()}
        sides = {f"past_{side}.{layer}" for side in "kv" for layer in range(self._layers)}
        if set(inputs) != sides | {"input_ids", "seqlens_k", "total_sequence_length", "out_index"}:
            raise PackError(f"{name} is not a decoder graph of {self._layers} layers.")
        kv_heads, _, head_dim = self._cache.row_shape
        past = inputs["past_k.0"].shape
        logits = next((node.shape for node in self._session.get_outputs() if node.name == "logits"), [0])
        stated = [(past[1], kv_heads), (past[3], head_dim), (logits[-1], self._vocab_size)]
        # A dimension without a number is a name; the run itself checks it.
        if any(isinstance(found, int) and found != wanted for found, wanted in stated):
            raise PackError(f"{name} does not have the dimensions that its pack states.")
        return (1,) if inputs["total_sequence_length"].shape else ()


def _bind_input(binding: Binding, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Bind the first elements of ``array`` as an input of ``shape``; the caller keeps the array."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, list(shape), array.ctypes.data)
