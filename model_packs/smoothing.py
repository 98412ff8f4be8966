"""Move the outliers of activations into the weights before both are quantised.

A few channels of a transformer's activations are many times larger than the rest and leave the rest
few steps of an 8-bit scale. SmoothQuant (Xiao et al., 2023, arXiv:2211.10438) divides each input
channel of a matrix product by a factor and multiplies the weight's row by it: the same product, and
both sides are easier to quantise. The factors balance the largest activation of a channel, seen on
calibration texts, against the largest weight of its row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from appliance.engines.cores import Cores
from appliance.engines.encoding.forward import TokenSequence, pad
from model_packs.int8_matmul import is_large_weight
from model_packs.onnx_graph import Graph, is_gelu

Floats = npt.NDArray[np.float32]

# The paper's alpha: how much of the difficulty goes from the activations into the weights.
STRENGTH = 0.5
SMALLEST = 1e-5


def smooth(model: onnx.ModelProto, sequences: list[TokenSequence]) -> onnx.ModelProto:
    """Return an equivalent float model whose activations have smaller outliers on ``sequences``.

    Activations after a GELU are left alone: smoothing them gained nothing (measured).
    """
    graph = Graph(model)
    products: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "MatMul" and is_large_weight(graph, node.input[1]):
            products.setdefault(node.input[0], []).append(node)
    products = {name: nodes for name, nodes in products.items() if not is_gelu(graph, name)}
    largest = channel_maxima(model, sorted(products), sequences)

    added: list[onnx.TensorProto] = []
    replaced: dict[int, list[onnx.NodeProto]] = {}
    for number, (activation, nodes) in enumerate(products.items()):
        weights = {node.input[1]: graph.array(node.input[1]).astype(np.float32) for node in nodes}
        rows = np.maximum.reduce([np.abs(weight).max(axis=1) for weight in weights.values()])
        factors = _factors(largest[activation], rows)
        inverse, smoothed = f"smoothing_{number}", f"{activation}.smoothed"
        added.append(numpy_helper.from_array((1 / factors).astype(np.float32), inverse))
        scale = helper.make_node("Mul", [activation, inverse], [smoothed], name=f"{smoothed}/Mul")
        for position, node in enumerate(nodes):
            # Products of other activations may share the weight: each gets its own copy.
            weight = f"{node.input[1]}.smoothed_{number}"
            if weight not in {tensor.name for tensor in added}:
                added.append(numpy_helper.from_array(weights[node.input[1]] * factors[:, None], weight))
            product = helper.make_node("MatMul", [smoothed, weight], list(node.output), name=node.name)
            replaced[id(node)] = [product] if position else [scale, product]
    nodes_out = [new for node in graph.nodes for new in replaced.get(id(node), [node])]
    return graph.finish(nodes_out, added)


def channel_maxima(
    model: onnx.ModelProto, names: list[str], sequences: list[TokenSequence]
) -> dict[str, Floats]:
    """Return the largest magnitude of every channel (last axis) of the named values over ``sequences``."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    for name in names:
        if name not in known:
            watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    maxima: dict[str, Floats] = {}
    with tempfile.TemporaryDirectory(prefix="smoothing-") as work:
        path = Path(work) / "model.onnx"
        onnx.save(watched, str(path), save_as_external_data=True, location="weights")
        session: Any = Cores().session(path)
        inputs = [node.name for node in session.get_inputs()]
        for sequence in sequences:
            feed = pad([sequence], 0)  # alone: nothing is padded
            values = session.run(names, {name: feed[name] for name in inputs})
            for name, value in zip(names, values, strict=True):
                seen = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0)
                maxima[name] = np.maximum(maxima[name], seen) if name in maxima else seen
    return maxima


def _factors(activations: Floats, rows: Floats) -> Floats:
    """Return the divisor of each channel; their geometric mean is 1."""
    factors = np.maximum(activations, SMALLEST) ** STRENGTH / np.maximum(rows, SMALLEST) ** (1 - STRENGTH)
    return np.asarray(factors / np.exp(np.log(factors).mean()), dtype=np.float32)
