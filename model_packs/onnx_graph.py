"""What the rewriters ask of an ONNX graph: constants, producers, consumers, patterns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"


class Graph:
    """An ONNX graph with what a rewriter asks of it: constants, producers, consumers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})

    def array(self, name: str) -> npt.NDArray[np.generic]:
        """Return a constant's value."""
        return numpy_helper.to_array(self.constants[name])

    def scalar(self, name: str) -> float | None:
        """Return the value of a constant with one element, else None."""
        if name not in self.constants:
            return None
        array = self.array(name)
        return float(array.reshape(())) if array.size == 1 else None

    def finish(self, nodes: list[onnx.NodeProto], added: list[onnx.TensorProto]) -> onnx.ModelProto:
        """Return a new model with ``nodes``, and of the old and ``added`` initialisers those still used."""
        names = {output.name for output in self.model.graph.output}
        alive: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if any(output in names for output in node.output):
                alive.append(node)
                names.update(node.input)
        initializers = [t for t in [*self.model.graph.initializer, *added] if t.name in names]
        graph = helper.make_graph(
            alive[::-1],
            "encoder",
            [i for i in self.model.graph.input if i.name not in self.constants],
            list(self.model.graph.output),
            initializers,
        )
        opsets = [e for e in self.model.opset_import if e.domain in {"", "ai.onnx"}]
        return helper.make_model(
            graph,
            opset_imports=[*opsets, helper.make_opsetid(MICROSOFT, 1)],
            ir_version=max(self.model.ir_version, 8),
            producer_name="appliance",
        )


def is_gelu(graph: Graph, name: str) -> bool:
    """Say whether a value is x * (1 + erf(x / sqrt 2)) / 2, in the forms that exporters write, or a Gelu node."""
    node = graph.producer.get(name)
    if node is None:
        return False
    if node.op_type in {"Gelu", "BiasGelu"}:
        return True
    factors = _flat_product(graph, name)
    erfs = [factor for factor in factors if _is_one_plus_erf(graph, factor)]
    rest = [factor for factor in factors if factor not in erfs]
    halves = [factor for factor in rest if graph.scalar(factor) == 0.5]
    values = [factor for factor in rest if factor not in halves]
    if len(erfs) != 1 or len(halves) != 1 or len(values) != 1:
        return False
    return _erf_argument(graph, erfs[0]) == values[0]


def _flat_product(graph: Graph, name: str) -> list[str]:
    """Return the factors of nested Mul nodes, at most three."""
    node = graph.producer.get(name)
    if node is None or node.op_type != "Mul":
        return [name]
    factors = list(node.input)
    for factor in node.input:
        inner = graph.producer.get(factor)
        if inner is not None and inner.op_type == "Mul" and len(factors) == 2:
            factors.remove(factor)
            factors += list(inner.input)
    return factors


def _is_one_plus_erf(graph: Graph, name: str) -> bool:
    return _erf_argument(graph, name) is not None


def _erf_argument(graph: Graph, name: str) -> str | None:
    """Return x of 1 + erf(x / sqrt 2), or None when ``name`` is something else."""
    add = graph.producer.get(name)
    if add is None or add.op_type != "Add":
        return None
    ones = [value for value in add.input if graph.scalar(value) == 1.0]
    erf = next((graph.producer.get(value) for value in add.input if value not in ones), None)
    if len(ones) != 1 or erf is None or erf.op_type != "Erf":
        return None
    scaled = graph.producer.get(erf.input[0])
    if scaled is None or scaled.op_type not in {"Div", "Mul"}:
        return None
    wanted = np.sqrt(2) if scaled.op_type == "Div" else np.sqrt(0.5)
    for value, constant in (
        scaled.input,
        list(scaled.input)[::-1] if scaled.op_type == "Mul" else scaled.input,
    ):
        factor = graph.scalar(constant)
        if factor is not None and abs(factor - wanted) < 1e-4:
            return str(value)
    return None
