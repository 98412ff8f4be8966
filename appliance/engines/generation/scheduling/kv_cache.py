"""The memory of attention: keys and values of every running sequence.

One array per layer and side, [rows, kv_heads, capacity, head_dim] float32, where a row is one
sequence. Every row spans the whole context, but only in virtual memory: pages are touched as a
sequence grows and given back when it ends, so ``capacity`` costs nothing (nor does it slow
attention down; measured). How many tokens may be touched at once is for ``rows.RowTable`` to say.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError

FLOAT32_BYTES = 4
# Do not count the untouched pages against the machine's memory. Python names it from 3.13 on only.
MAP_NORESERVE = 0x4000


class KvCache:
    """The key and value arrays of ``layers`` layers; ``tensors`` is k of layer 0, v of layer 0, k of layer 1…"""

    def __init__(self, *, layers: int, kv_heads: int, head_dim: int, rows: int, context_length: int) -> None:
        """Reserve the address space. Raises EngineError when the system refuses it."""
        position_bytes = head_dim * FLOAT32_BYTES
        # Rows start at page borders, so that the pages of one can be given back.
        whole_pages = mmap.PAGESIZE // np.gcd(mmap.PAGESIZE, position_bytes)
        self.capacity = int(-(-context_length // whole_pages) * whole_pages)
        self.rows = rows
        self.row_shape = (kv_heads, self.capacity, head_dim)
        self.row_bytes = kv_heads * self.capacity * position_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        try:
            self._maps = [mmap.mmap(-1, rows * self.row_bytes, flags=flags) for _ in range(2 * layers)]
        except OSError as error:
            raise EngineError(f"Cannot reserve address space for the KV cache: {error.strerror}.") from error
        for memory in self._maps:
            # A huge page would take 2 MiB for the first token of every head.
            with contextlib.suppress(OSError):  # a kernel that has no huge pages refuses the advice
                memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensors: list[NDArray[np.float32]] = [
            np.frombuffer(memory, dtype=np.float32).reshape(rows, *self.row_shape) for memory in self._maps
        ]
        self._addresses = [tensor.ctypes.data for tensor in self.tensors]

    def addresses(self, row: int) -> list[int]:
        """Return where ``row`` starts in each of ``tensors``."""
        return [address + row * self.row_bytes for address in self._addresses]

    def copy(self, source: int, target: int, tokens: int, first: int = 0) -> None:
        """Copy the positions from ``first`` up to ``tokens`` of row ``source`` over those of ``target``."""
        for tensor in self.tensors:
            tensor[target, :, first:tokens] = tensor[source, :, first:tokens]

    def swap(self, one: int, other: int, one_tokens: int, other_tokens: int) -> None:
        """Exchange two rows: the first ``one_tokens`` positions of ``one`` and ``other_tokens`` of ``other``."""
        for tensor in self.tensors:
            kept = tensor[one, :, :one_tokens].copy()
            tensor[one, :, :other_tokens] = tensor[other, :, :other_tokens]
            tensor[other, :, :one_tokens] = kept
        self.trim(one, other_tokens, one_tokens)
        self.trim(other, one_tokens, other_tokens)

    def clear(self, row: int) -> None:
        """Give the memory of ``row`` back to the system; its content is then zeros."""
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED, row * self.row_bytes, self.row_bytes)

    def trim(self, row: int, first: int, end: int) -> None:
        """Give back the pages of ``row`` that hold nothing but positions from ``first`` up to ``end``."""
        kv_heads, capacity, head_dim = self.row_shape
        position_bytes = head_dim * FLOAT32_BYTES
        # Positions behind ``end`` are unused as well, so the last page may go as a whole.
        start = -(-first * position_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        length = -(-end * position_bytes // mmap.PAGESIZE) * mmap.PAGESIZE - start
        if length <= 0:
            return
        for memory in self._maps:
            for head in range(kv_heads):
                place = row * self.row_bytes + head * capacity * position_bytes + start
                memory.madvise(mmap.MADV_DONTNEED, place, length)


def bytes_per_token(*, layers: int, kv_heads: int, head_dim: int) -> int:
    """Return the bytes of one token's keys and values over all layers."""
    return 2 * layers * kv_heads * head_dim * FLOAT32_BYTES
