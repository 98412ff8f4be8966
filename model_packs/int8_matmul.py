"""Rewrite the matrix products of an ONNX graph to 8-bit integers, scaled by rows.

Activations have one scale per row (``row_scales``), so that a result does not depend on its batch.

After a GELU, which is never below -0.17, the whole range of uint8 is used instead of half of it::

    y = gelu + 0.17    q = round(y / max y * 255)    gelu @ W = y @ W - 0.17 * column sums of W

Weights have one scale per output column. ONNX Runtime's kernels for AVX2 add two uint8 x int8
products in 16 bits and saturate when weights go beyond +-64; for uint8 x uint8 they are exact. So
weights that come quantised keep their integers, as int8 when they stay within +-64 and as uint8
around 128 when they do not, and float weights become uint8 around 128 (+-127).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from model_packs.errors import BuildError
from model_packs.onnx_graph import Graph, is_gelu
from model_packs.row_scales import integer_product, row_maxima, signed_scale, unit_rows

WEIGHT_LIMIT = 127
WEIGHT_ZERO = 128
# Saturation starts here: 255 * 64 * 2 < 2 ** 15 <= 255 * 65 * 2.
EXACT_LIMIT = 64
GELU_MINIMUM = 0.17
# A product by a narrower matrix (a classifier's last step) costs nothing and stays in float.
SMALLEST_SIDE = 16
# Embedding tables of at least this many values are stored in 8 bits too, with one scale a row.
TABLE_VALUES = 1 << 20


class Grid(NamedTuple):
    """A quantised weight [K, N]: (values - zero_point) * scale per column."""

    values: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero_point: int

    def dequantised(self) -> npt.NDArray[np.float32]:
        """Return the weight in float32."""
        return np.asarray((self.values.astype(np.float32) - self.zero_point) * self.scale, dtype=np.float32)


def dequantise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Grid]]:
    """Return the float model behind a dynamically quantised one, and the grids of its weights by name.

    Each DynamicQuantizeLinear, MatMulInteger, Cast, Mul chain becomes one MatMul with the weight in
    float32. Raises BuildError when a chain is not of that form.
    """
    graph = Graph(model)
    replaced: dict[int, onnx.NodeProto] = {}
    dropped: set[int] = set()
    added: list[onnx.TensorProto] = []
    grids: dict[str, Grid] = {}
    for node in graph.nodes:
        if node.op_type != "MatMulInteger":
            continue
        chain = _integer_chain(graph, node)
        if chain is None:
            raise BuildError(f"{node.name}: a MatMulInteger that was not made by dynamic quantisation")
        activation, scale_name, cast, rescale = chain
        grid = _source_grid(graph, node, scale_name)
        weight = f"{node.input[1]}.float"
        grids[weight] = grid
        added.append(numpy_helper.from_array(grid.dequantised(), weight))
        replaced[id(rescale)] = helper.make_node(
            "MatMul", [activation, weight], list(rescale.output), name=node.name.removesuffix("_quant")
        )
        dropped |= {id(node), id(cast)}
    nodes = [replaced.get(id(node), node) for node in graph.nodes if id(node) not in dropped]
    nodes = [node for node in nodes if node.op_type != "DynamicQuantizeLinear"]
    # The product of the two scales has lost its input with the quantiser.
    made = {output for node in nodes for output in node.output} | set(graph.constants)
    made |= {value.name for value in model.graph.input} | set(grids) | {""}
    nodes = [node for node in nodes if all(name in made for name in node.input)]
    return graph.finish(nodes, added), grids


def quantise(model: onnx.ModelProto, grids: dict[str, Grid] | None = None) -> onnx.ModelProto:
    """Return ``model`` with every MatMul by a constant matrix done in 8 bits, and large tables in 8 bits.

    ``grids`` are weights that are known to come from integers. Gemm and narrow matrices (poolers,
    classifier heads) stay in float: small, and the last step before a score.
    """
    graph = Graph(model)
    writer = _Writer(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "MatMul" and is_large_weight(graph, node.input[1]):
            grid = (grids or {}).get(node.input[1]) or quantised_columns(graph.array(node.input[1]))
            nodes += writer.product(node, grid)
        elif node.op_type == "Gather" and _is_table(graph, node):
            nodes += writer.table(node)
        else:
            nodes.append(node)
    if not writer.count:
        raise BuildError("the graph has no matrix product with constant weights: nothing to quantise")
    return graph.finish(nodes, writer.added)


def quantised_columns(weight: npt.NDArray[np.generic]) -> Grid:
    """Quantise a float weight [K, N] to +-127 around 128, one scale per column."""
    values = weight.astype(np.float32)
    scale = np.abs(values).max(axis=0) / WEIGHT_LIMIT
    scale[scale == 0] = 1
    steps = np.rint(values / scale) + WEIGHT_ZERO
    return Grid(steps.astype(np.uint8), scale.astype(np.float32), WEIGHT_ZERO)


def is_large_weight(graph: Graph, name: str) -> bool:
    """Say whether ``name`` is a constant matrix that ``quantise`` takes."""
    return (
        name in graph.constants
        and len(graph.constants[name].dims) == 2
        and min(graph.constants[name].dims) >= SMALLEST_SIDE
    )


def _integer_chain(
    graph: Graph, node: onnx.NodeProto
) -> tuple[str, str, onnx.NodeProto, onnx.NodeProto] | None:
    """Return (activation, weight scale, Cast, Mul) around a MatMulInteger, or None when it is another form."""
    quantiser = graph.producer.get(node.input[0])
    casts = graph.consumers.get(node.output[0], [])
    if quantiser is None or quantiser.op_type != "DynamicQuantizeLinear" or len(casts) != 1:
        return None
    rescales = graph.consumers.get(casts[0].output[0], [])
    if casts[0].op_type != "Cast" or len(rescales) != 1 or rescales[0].op_type != "Mul":
        return None
    (scales,) = [name for name in rescales[0].input if name != casts[0].output[0]]
    product = graph.producer.get(scales)
    if product is None or product.op_type != "Mul" or quantiser.output[1] not in product.input:
        return None
    (scale,) = [name for name in product.input if name != quantiser.output[1]]
    if any(name not in graph.constants for name in (scale, *node.input[1:2], *node.input[3:4])):
        return None
    return quantiser.input[0], scale, casts[0], rescales[0]


def _source_grid(graph: Graph, node: onnx.NodeProto, scale_name: str) -> Grid:
    """Return the weight of a MatMulInteger in the form the kernels compute exactly."""
    values = graph.array(node.input[1])
    zero_points = graph.array(node.input[3]) if len(node.input) > 3 else np.zeros((), dtype=values.dtype)
    centred = values.astype(np.int16) - zero_points.astype(np.int16)
    columns = values.shape[1]
    scale = np.broadcast_to(graph.array(scale_name).astype(np.float32), (columns,)).copy()
    largest = int(np.abs(centred).max(initial=0))
    if largest <= EXACT_LIMIT:
        return Grid(centred.astype(np.int8), scale, 0)
    if largest <= 127:
        return Grid((centred + WEIGHT_ZERO).astype(np.uint8), scale, WEIGHT_ZERO)
    raise BuildError(f"{node.name}: weights around a zero point so far from the middle are not supported")


def _is_table(graph: Graph, node: onnx.NodeProto) -> bool:
    tensor = graph.constants.get(node.input[0])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return (
        tensor is not None
        and tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2
        and axis == 0
        and tensor.dims[0] * tensor.dims[1] >= TABLE_VALUES
    )


class _Writer:
    """Writes the integer form of nodes; activations that several products share are quantised once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.opset: int = graph.opset
        self.added: list[onnx.TensorProto] = []
        self.count = 0
        self._known: set[str] = set()
        self._rows: dict[str, tuple[str, str]] = {}
        self._nodes: list[onnx.NodeProto] = []

    def product(self, node: onnx.NodeProto, grid: Grid) -> list[onnx.NodeProto]:
        """Return the nodes that compute a MatMul by ``grid`` in 8 bits."""
        self.count += 1
        self._nodes = []
        activation, output = node.input[0], node.output[0]
        gelu = is_gelu(self.graph, activation)
        quantiser = self._positive_scale() if gelu else signed_scale(self)
        if activation not in self._rows:
            values, row_max = (
                self._positive_rows(activation) if gelu else unit_rows(self, activation, activation)
            )
            quantised = self.node("QuantizeLinear", [values, *quantiser], [f"{activation}.quantised"])
            self._rows[activation] = quantised, row_max
        quantised, row_max = self._rows[activation]
        prefix = f"weight_{self.count}"
        weight = [
            self.constant(f"{prefix}.values", grid.values),
            self.constant(f"{prefix}.scale", grid.scale),
            self.constant(f"{prefix}.zero_point", np.array(grid.zero_point, dtype=grid.values.dtype)),
        ]
        product = integer_product(self, quantised, quantiser, weight, f"{output}.integer")
        if gelu:
            scaled = self.node("Mul", [product, row_max], [f"{output}.shifted"])
            shift = GELU_MINIMUM * grid.dequantised().astype(np.float64).sum(axis=0)
            self.node("Sub", [scaled, self.constant(f"{prefix}.shift", shift.astype(np.float32))], [output])
        else:
            self.node("Mul", [product, row_max], [output])
        return self._nodes

    def table(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that look rows up in an 8-bit table with one scale a row."""
        self._nodes = []
        table = self.graph.array(node.input[0]).astype(np.float32)
        scale = np.abs(table).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        name, output = node.input[0], node.output[0]
        values = self.constant(f"{name}.values", np.rint(table / scale).astype(np.int8))
        rows = self.node("Gather", [values, node.input[1]], [f"{output}.rows"])
        floats = self.node("Cast", [rows], [f"{output}.floats"], to=onnx.TensorProto.FLOAT)
        scales = self.constant(f"{name}.scale", scale.astype(np.float32))
        factors = self.node("Gather", [scales, node.input[1]], [f"{output}.scales"])
        self.node("Mul", [floats, factors], [output])
        return self._nodes

    def _positive_rows(self, activation: str) -> tuple[str, str]:
        """Return rows of GELU values, moved up so that none is negative, as [0, 1], and their maxima."""
        minimum = self.constant("gelu.minimum", np.float32(GELU_MINIMUM))
        moved = self.node("Add", [activation, minimum], [f"{activation}.moved"])
        row_max = row_maxima(self, moved, activation)
        return self.node("Div", [moved, row_max], [f"{activation}.unit"]), row_max

    def _positive_scale(self) -> list[str]:
        return [
            self.constant("positive.scale", np.float32(1 / 255)),
            self.constant("positive.zero_point", np.uint8(0)),
        ]

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a constant, once under each name, and return the name."""
        if name not in self._known:
            self._known.add(name)
            self.added.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        """Add a node and return its first output."""
        name = f"{outputs[0]}/{op}"
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]
