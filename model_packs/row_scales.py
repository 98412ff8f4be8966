"""Matrix products in 8-bit integers whose activations have one scale per row (token).

Dynamic quantisation as ONNX Runtime's tools write it (DynamicQuantizeLinear) has one scale for a
whole activation tensor: the padding and the neighbours in a batch change everybody's result. With a
scale per row a result depends on its own row only, to the bit::

    row_max = max |x| over the row            q = round(x / row_max * 127) + 128      (uint8)
    x @ W  ~  row_max / 127 * weight_scale * (q - 128) @ W_integers

A row of zeros divides zero by zero; whatever integers that gives are multiplied by its row_max, zero.
Activations are uint8, for which the kernels are fast: int8 ones were measured ten times slower.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

MICROSOFT = "com.microsoft"
STEPS = 127
ZERO = 128
# In this opset the axes of ReduceMax became an input.
_AXES_ARE_INPUTS = 18


class NodeWriter(Protocol):
    """What collects the nodes and constants of the graph that is being written."""

    @property
    def opset(self) -> int:
        """Version of the ONNX operators that the graph uses."""

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output."""

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a constant, once under each name, and return the name."""


def row_maxima(writer: NodeWriter, source: str, name: str) -> str:
    """Return the largest value of each row of ``source`` [..., K] as [..., 1]."""
    if writer.opset >= _AXES_ARE_INPUTS:
        axes = writer.constant("last_axis", np.array([-1], dtype=np.int64))
        return writer.node("ReduceMax", [source, axes], [f"{name}.row_max"], keepdims=1)
    return writer.node("ReduceMax", [source], [f"{name}.row_max"], keepdims=1, axes=[-1])


def unit_rows(writer: NodeWriter, source: str, name: str) -> tuple[str, str]:
    """Return ``source`` divided by its rows' largest magnitudes, in [-1, 1], and those magnitudes."""
    magnitudes = writer.node("Abs", [source], [f"{name}.abs"])
    row_max = row_maxima(writer, magnitudes, name)
    return writer.node("Div", [source, row_max], [f"{name}.unit"]), row_max


def signed_scale(writer: NodeWriter) -> list[str]:
    """Return the names of the scale and zero point of a value in [-1, 1]."""
    return [
        writer.constant("signed.scale", np.float32(1 / STEPS)),
        writer.constant("signed.zero_point", np.uint8(ZERO)),
    ]


def integer_product(
    writer: NodeWriter, integers: str, quantiser: list[str], weight: list[str], output: str
) -> str:
    """Multiply ``integers`` [..., K], of scale and zero point ``quantiser``, with a quantised [K, N].

    ``weight`` names the weight's values, its scale per column, and its zero point. Returns float32.
    """
    (scale, zero_point), (values, weight_scale, weight_zero) = quantiser, weight
    inputs = [integers, values, scale, weight_scale, zero_point, weight_zero]
    return writer.node("MatMulIntegerToFloat", inputs, [output], MICROSOFT)
