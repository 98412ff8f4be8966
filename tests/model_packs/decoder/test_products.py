"""Products by rows: close to the float product, the same alone and in a batch, and zero for a row of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from model_packs.decoder.graph import OPSET, GraphWriter
from model_packs.decoder.products import RowProduct
from model_packs.decoder.profiles import FLOAT
from model_packs.decoder.tensor_file import TensorFile
from model_packs.row_scales import MICROSOFT

FloatArray = NDArray[np.float32]
RNG = np.random.default_rng(4)
WEIGHTS = RNG.standard_normal((24, 64)).astype(np.float32)
# Outliers, rows of very different size, and one of zeros.
STATES = (
    RNG.standard_normal((16, 1, 64)).astype(np.float32)
    * np.logspace(-6, 4, 16, dtype=np.float32)[:, None, None]
)
STATES[:, :, 7] *= 30
STATES[3] = 0


def product(digits: Literal[1, 2], folder: Path) -> Any:
    """Return a session that multiplies ``x`` [B, S, 64] with WEIGHTS."""
    path = folder / "model.onnx"
    with TensorFile(folder / "model.onnx.data") as tensors:
        writer = GraphWriter(tensors, FLOAT)
        out = RowProduct(digits).write(writer, "x", "part", WEIGHTS)
        graph = helper.make_graph(
            writer.nodes,
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 64])],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
            initializer=tensors.initializers,
        )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, states: FloatArray) -> FloatArray:
    result: FloatArray = session.run(None, {"x": states})[0]
    return result


@pytest.mark.parametrize(("digits", "bound"), [(1, 0.1), (2, 0.01)])
def test_every_row_keeps_its_own_precision(digits: Literal[1, 2], bound: float, tmp_path: Path) -> None:
    values = np.rint(WEIGHTS / np.abs(WEIGHTS).max(axis=1, keepdims=True) * 127)
    weights = values * np.abs(WEIGHTS).max(axis=1, keepdims=True) / 127
    expected = STATES @ weights.T
    error = np.linalg.norm(run(product(digits, tmp_path), STATES) - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    kept = np.arange(16) != 3
    assert (error[kept] < bound * size[kept]).all()
    assert (error[3] == 0).all()


@pytest.mark.parametrize("digits", [1, 2])
def test_rows_are_the_same_alone_and_together(digits: Literal[1, 2], tmp_path: Path) -> None:
    session = product(digits, tmp_path)
    together = run(session, STATES)
    for row in range(16):
        np.testing.assert_array_equal(run(session, STATES[row : row + 1])[0], together[row])
    np.testing.assert_array_equal(run(session, STATES.reshape(1, 16, 64))[0], together[:, 0])
