"""Turn a decoder's hidden states into a basis without outliers, by exact algebra on its weights.

A few channels of the states are many times larger than the rest and leave the rest few steps of an
8-bit scale. RMS normalisation does not care about the basis once its gammas have moved into the
matrices behind it, so an orthogonal matrix R can be folded into every matrix that reads or writes
the states (QuaRot, Ashkboos et al., 2024, arXiv:2404.00456): each rotated channel is a mixture of
all, and none sticks out. Only the embedding's rows are turned when they are looked up, and the last
states turned back before the head. Queries, keys and values stay what they were, so a rotated graph
shares its KV cache with the plain one.

R is a product of a Hadamard matrix, Householder reflections and random signs: its entries are small
integers over one divisor. They fit 8 bits exactly, and weights are turned by additions in a fixed
order, so that every machine writes the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.weights import DecoderConfig, FloatArray, TensorSource

_READERS = {"q": "attention_norm", "k": "attention_norm", "v": "attention_norm"} | {
    "gate": "mlp_norm",
    "up": "mlp_norm",
}
_WRITERS = ("o", "down")
_SIGNS_SEED = 0
_LARGEST = 127


class Rotation:
    """An orthogonal matrix of ``size`` x ``size`` with small integer entries over ``divisor``."""

    def __init__(self, size: int) -> None:
        """Factor ``size``; factors whose entries would not fit 8 bits are left unmixed."""
        self.size = size
        self._factors: list[int] = []
        rest, largest = size, 1
        divisor = 2
        while rest > 1:
            if rest % divisor:
                divisor += 1
                continue
            rest //= divisor
            # A reflection's entries are divisor - 2 and -2, and Hadamard's 1 and -1.
            grown = largest * max(divisor - 2, 2 if divisor > 2 else 1)
            if grown <= _LARGEST:
                self._factors.append(divisor)
                largest = grown
        norms = [factor if factor > 2 else np.sqrt(2) for factor in self._factors]
        self.divisor = np.float32(np.prod(norms))
        self._signs = np.random.default_rng(_SIGNS_SEED).choice(np.array([-1, 1], np.float32), size)

    def turn(self, columns: FloatArray) -> FloatArray:
        """Return R transposed @ ``columns`` for columns float32 [size, n]."""
        turned: FloatArray = self._integers(columns) / self.divisor
        return turned

    def integers(self) -> NDArray[np.int8]:
        """Return R * divisor, int8 [size, size]."""
        transposed = self._integers(np.eye(self.size, dtype=np.float32))
        return np.ascontiguousarray(transposed.T).astype(np.int8)

    def _integers(self, columns: FloatArray) -> FloatArray:
        mixed = columns * self._signs[:, None]
        inner = columns.shape[1]
        for factor in self._factors:
            parts = mixed.reshape(-1, factor, inner)
            turned = np.empty_like(parts)
            if factor == 2:
                np.add(parts[:, 0], parts[:, 1], out=turned[:, 0])
                np.subtract(parts[:, 0], parts[:, 1], out=turned[:, 1])
            else:
                twice = parts[:, 0].copy()
                for index in range(1, factor):
                    twice += parts[:, index]
                twice += twice
                np.multiply(parts, np.float32(factor), out=turned)
                turned -= twice[:, None]
            mixed = turned
            inner *= factor
        result: FloatArray = mixed.reshape(columns.shape)
        return result


def rotated(tensor: TensorSource, config: DecoderConfig, rotation: Rotation) -> TensorSource:
    """Return ``tensor`` with the layers' matrices turned into the rotated basis and their gammas folded in.

    ``embedding``, ``head`` and ``final_norm`` stay as they are: the graph turns the states there.
    """

    def turned(name: str) -> FloatArray:
        layer, _, part = name.rpartition(".")
        values = tensor(name)
        if part in _READERS:
            columns = np.ascontiguousarray((values * tensor(f"{layer}.{_READERS[part]}")).T)
            return rotation.turn(columns).T
        if part in _WRITERS:
            return rotation.turn(values)
        if part in ("attention_norm", "mlp_norm"):
            return np.ones(config.hidden_size, dtype=np.float32)
        return values

    return turned
