"""The weights that a profile names count once, wherever they lie, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.benchmarks.generation_memory import Holding, weights_bytes

DATA = "weights.data"


def write_graph(path: Path, *places: tuple[int, int]) -> int:
    """Write a graph whose tensors are bytes of DATA at (offset, length), and a small one inside; return its size."""
    tensors = []
    for index, (offset, length) in enumerate(places):
        tensor = TensorProto(name=f"t{index}", data_type=TensorProto.INT8, dims=[length])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    tensors.append(onnx.numpy_helper.from_array(np.zeros(3, np.int8), "inside"))
    graph = helper.make_graph([], "g", [], [], initializer=tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path.stat().st_size


def test_a_weight_counts_once_and_what_the_graph_does_not_name_not_at_all(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(bytes(10_000))
    graph = tmp_path / "a.onnx"
    size = write_graph(graph, (0, 1000), (0, 1000), (5000, 2000))
    assert weights_bytes(graph) == size + 3000


def test_a_share_is_of_the_program_the_weights_and_the_cache() -> None:
    holding = Holding(state="loaded", resident=220.0, program=100.0, weights=80.0, kv=20.0)
    assert holding.share == 1.1
