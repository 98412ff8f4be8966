"""The rewriting of matrix products to row-scaled integers, on small graphs made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_packs.errors import BuildError
from model_packs.int8_matmul import dequantise, quantise, quantised_columns
from model_packs.onnx_graph import Graph, is_gelu

Floats = npt.NDArray[np.float32]
WIDTH, HIDDEN = 32, 64


def session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, x: Floats) -> Floats:
    return np.asarray(session(model).run(None, {"x": x})[0], dtype=np.float32)


def as_model(
    nodes: list[onnx.NodeProto], constants: dict[str, npt.NDArray[Any]], opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feed_forward(rng: np.random.Generator, *, opset: int = 17) -> onnx.ModelProto:
    """x -> MatMul -> GELU written out -> MatMul, as exporters write it."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Div", ["h", "sqrt2"], ["s"]),
        helper.make_node("Erf", ["s"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["e1"]),
        helper.make_node("Mul", ["h", "e1"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["g"]),
        helper.make_node("MatMul", ["g", "down"], ["y"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "up": rng.normal(size=(WIDTH, HIDDEN)).astype(np.float32) / 6,
        "down": rng.normal(size=(HIDDEN, WIDTH)).astype(np.float32) / 8,
        "sqrt2": np.array(np.sqrt(2), dtype=np.float32),
        "one": np.array(1, dtype=np.float32),
        "half": np.array(0.5, dtype=np.float32),
    }
    return as_model(nodes, constants, opset)


def dynamic(rng: np.random.Generator, largest: int) -> tuple[onnx.ModelProto, Floats]:
    """One product as ONNX Runtime's dynamic quantisation writes it, and its weight in float."""
    values = rng.integers(-largest, largest + 1, size=(WIDTH, HIDDEN)).astype(np.int8)
    values[0, 0] = largest
    scale = rng.uniform(0.01, 0.02, HIDDEN).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w_quantized", "qz", "w_zero_point"], ["i"]),
        helper.make_node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qs", "w_scale"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "w_quantized": values,
        "w_zero_point": np.zeros((), np.int8),
        "w_scale": scale,
    }
    return as_model(nodes, constants), values.astype(np.float32) * scale


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_products_are_close_to_the_float_graph(opset: int) -> None:
    rng = np.random.default_rng(opset)
    model = feed_forward(rng, opset=opset)
    quantised = quantise(model)
    assert [node.op_type for node in quantised.graph.node].count("MatMulIntegerToFloat") == 2
    x = rng.normal(size=(3, 5, WIDTH)).astype(np.float32)
    expected, got = run(model, x), run(quantised, x)
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-4, 1e4), neighbours=st.integers(0, 4))
def test_a_row_does_not_depend_on_the_other_rows(seed: int, scale: float, neighbours: int) -> None:
    rng = np.random.default_rng(seed)
    graph = session(quantise(feed_forward(rng)))
    row = rng.normal(size=(1, 1, WIDTH)).astype(np.float32)
    others = (scale * rng.normal(size=(neighbours, 1, WIDTH))).astype(np.float32)
    (alone,) = graph.run(None, {"x": row})
    (together,) = graph.run(None, {"x": np.concatenate([row, others])})
    np.testing.assert_array_equal(together[:1], alone)


def test_rows_of_zeros_and_huge_values_stay_finite() -> None:
    rng = np.random.default_rng(0)
    quantised = quantise(feed_forward(rng))
    x = np.zeros((2, 2, WIDTH), dtype=np.float32)
    x[1] = 1e30
    assert np.isfinite(run(quantised, x)).all()


@pytest.mark.parametrize("largest", [64, 65, 127])
def test_integers_of_the_source_are_kept_and_do_not_saturate(largest: int) -> None:
    rng = np.random.default_rng(largest)
    model, weight = dynamic(rng, largest)
    float_model, grids = dequantise(model)
    (grid,) = grids.values()
    np.testing.assert_array_equal(grid.dequantised(), weight)
    assert grid.values.dtype == (np.int8 if largest <= 64 else np.uint8)
    # All activations at the top of their scale: here 16-bit sums of uint8 x int8 would overflow.
    x = np.ones((1, 1, WIDTH), dtype=np.float32)
    expected = (x @ weight)[0, 0]
    np.testing.assert_allclose(run(float_model, x)[0, 0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(quantise(float_model, grids), x)[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_gelu_is_recognised_and_other_products_are_not() -> None:
    graph = Graph(feed_forward(np.random.default_rng(0)))
    assert is_gelu(graph, "g")
    assert not any(is_gelu(graph, name) for name in ("x", "h", "s", "e1", "m"))


def test_large_tables_are_stored_in_8_bits() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1 << 16, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "table": table,
        "ids": np.array([[3, 65535]]),
        "w": np.eye(WIDTH, dtype=np.float32),
    }
    model = as_model(nodes, constants)
    quantised = quantise(model)
    assert quantised.ByteSize() < 0.3 * model.ByteSize()
    x = np.zeros((1, 2, WIDTH), dtype=np.float32)
    np.testing.assert_allclose(run(quantised, x), run(model, x), atol=0.05)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), zero_column=st.booleans())
def test_a_weight_is_off_by_half_a_step_at_most(seed: int, zero_column: bool) -> None:
    weight = np.random.default_rng(seed).normal(size=(20, 20)).astype(np.float32)
    if zero_column:
        weight[:, 3] = 0
    grid = quantised_columns(weight)
    assert (np.abs(grid.dequantised() - weight) <= grid.scale * 0.501).all()


def test_a_graph_without_weights_and_a_strange_chain_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nothing to quantise"):
        quantise(as_model([helper.make_node("Abs", ["x"], ["y"])], {}))
    model, _ = dynamic(np.random.default_rng(0), 60)
    del model.graph.node[-1]
    model.graph.output[0].name = "c"
    with pytest.raises(BuildError, match="not made by dynamic quantisation"):
        dequantise(model)
