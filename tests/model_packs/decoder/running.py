"""Runs a decoder graph as an engine does: caches bound in place, prompts in chunks, rows in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores

FloatArray = NDArray[np.float32]


class Running:
    """A session with a KV cache of ``rows`` rows and ``capacity`` positions, filled with NaN."""

    def __init__(self, graph: Path, rows: int = 1, capacity: int = 64) -> None:
        self.session = Cores(1).session(graph)
        self.names = [value.name for value in self.session.get_inputs() if value.name.startswith("past_")]
        shape = self.session.get_inputs()[-1].shape
        # Unused positions must have no influence, whatever is in them.
        self.cache = {
            name: np.full((rows, shape[1], capacity, shape[3]), np.nan, np.float32) for name in self.names
        }

    def step(self, ids: list[list[int]], totals: list[int], wanted: list[int], row: int = 0) -> FloatArray:
        """Run ``ids`` [B, S] on rows ``row``...; ``totals`` are each row's tokens after the call."""
        import onnxruntime

        binding: Any = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array(ids, dtype=np.int64))
        binding.bind_cpu_input("seqlens_k", np.array(totals, dtype=np.int32) - 1)
        binding.bind_cpu_input("total_sequence_length", np.array([max(totals)], dtype=np.int32))
        binding.bind_cpu_input("out_index", np.array(wanted, dtype=np.int64))
        binding.bind_output("logits")
        for name in self.names:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(self.cache[name][row : row + len(ids)])
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        self.session.run_with_iobinding(binding)
        logits: FloatArray = binding.get_outputs()[0].numpy()
        return logits

    def prefill(self, tokens: list[int], chunk: int, row: int = 0) -> FloatArray:
        """Run a prompt in chunks and return the logits of every position."""
        parts = []
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            parts.append(self.step([part], [start + len(part)], list(range(len(part))), row))
        return np.concatenate(parts)
