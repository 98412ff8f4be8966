"""The ways a decoder graph stores a matrix [out, in] and multiplies states [..., in] with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model_packs.decoder.quantize import Bits, quantize_blocks, quantize_rows
from model_packs.decoder.weights import FloatArray
from model_packs.row_scales import (
    MICROSOFT,
    STEPS,
    NodeWriter,
    integer_product,
    signed_scale,
    unit_rows,
)

# int8 activations per block: the fast kernels. Level 1 (float32) was measured ten times slower.
ACCURACY_LEVEL = 4
# Steps of the second digit within one of the first: its rest is at most half a step either way.
_FINER = 2 * STEPS


class Product(Protocol):
    """A form of storing and multiplying matrices."""

    def write(self, writer: NodeWriter, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in] and return the result's name."""


@dataclass(frozen=True)
class FloatProduct:
    """Plain float32."""

    def write(self, writer: NodeWriter, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in] and return the result's name."""
        matrix = writer.constant(f"{name}.weight", np.ascontiguousarray(weights.T))
        return writer.node("MatMul", [source, matrix], [f"{name}.out"])


@dataclass(frozen=True)
class BlockProduct:
    """Blocks of ``bits``, with one scale a block of weights and of activations: the exact form."""

    block_size: int
    bits: Bits = 8

    def write(self, writer: NodeWriter, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in] and return the result's name."""
        values, scales = quantize_blocks(weights, self.block_size, self.bits)
        stored = [writer.constant(f"{name}.weight", values), writer.constant(f"{name}.scales", scales)]
        return self.multiply(writer, source, stored, name, weights.shape)

    def multiply(
        self, writer: NodeWriter, source: str, stored: list[str], name: str, shape: tuple[int, ...]
    ) -> str:
        """Multiply with the values and scales named ``stored`` of a matrix of ``shape`` [out, in]."""
        return writer.node(
            "MatMulNBits",
            [source, *stored],
            [f"{name}.out"],
            MICROSOFT,
            K=shape[1],
            N=shape[0],
            bits=self.bits,
            block_size=self.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )


@dataclass(frozen=True)
class RowProduct:
    """W8A8: int8 weights with one scale per output, activations in ``digits`` digits of 8 bits per row.

    A second digit holds what the rounding of the first left over, for activations with outliers (after
    SwiGLU). The digits are rows of one product, so the weights are read once.
    """

    digits: Literal[1, 2] = 1

    def write(self, writer: NodeWriter, source: str, name: str, weights: FloatArray) -> str:
        """Multiply ``source`` [..., in] with ``weights`` [out, in] and return the result's name."""
        return self.multiply(writer, source, *quantize_rows(weights), name)

    def multiply(
        self, writer: NodeWriter, source: str, values: NDArray[np.int8], scales: FloatArray, name: str
    ) -> str:
        """Multiply with int8 ``values`` [in, out] times ``scales`` [out]."""
        weight = [
            writer.constant(f"{name}.weight", values),
            writer.constant(f"{name}.scales", scales),
            # One each: the runtime rewrites it with its weight where int8 kernels would saturate.
            writer.constant(f"{name}.zero_point", np.int8(0)),
        ]
        unit, row_max = unit_rows(writer, source, name)
        quantiser = signed_scale(writer)
        first = writer.node("QuantizeLinear", [unit, *quantiser], [f"{name}.integers"])
        if self.digits == 1:
            product = integer_product(writer, first, quantiser, weight, f"{name}.unscaled")
        else:
            digits = writer.node(
                "Concat", [first, _second_digit(writer, unit, first, name)], [f"{name}.digits"], axis=0
            )
            both = integer_product(writer, digits, quantiser, weight, f"{name}.both")
            coarse, rest = f"{name}.coarse", f"{name}.rest"
            writer.node("Split", [both], [coarse, rest], axis=0, num_outputs=2)
            finer = writer.constant("second.weight", np.float32(1 / _FINER))
            fine = writer.node("Mul", [rest, finer], [f"{name}.fine"])
            product = writer.node("Add", [coarse, fine], [f"{name}.unscaled"])
        return writer.node("Mul", [product, row_max], [f"{name}.out"])


def _second_digit(writer: NodeWriter, unit: str, first: str, name: str) -> str:
    quantiser = signed_scale(writer)
    rounded = writer.node("DequantizeLinear", [first, *quantiser], [f"{name}.rounded"])
    left = writer.node("Sub", [unit, rounded], [f"{name}.left"])
    scale = writer.constant("second.scale", np.float32(1 / (STEPS * _FINER)))
    return writer.node("QuantizeLinear", [left, scale, quantiser[1]], [f"{name}.second"])
