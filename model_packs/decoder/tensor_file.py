"""Write tensors one after another into the data file beside an ONNX graph, which maps them."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# Pages are mapped whole; smaller alignments make the runtime copy.
ALIGNMENT = 4096
# Below this a tensor stays inside the graph: shape constants must be readable there.
INLINE_BYTES = 1024


class TensorFile:
    """The data file ``model.onnx.data``, open for writing; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self.initializers: list[Any] = []

    def __enter__(self) -> TensorFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Store ``array`` as the graph's initializer ``name`` and return the name."""
        from onnx import TensorProto, helper, numpy_helper

        assert self._file is not None
        if array.nbytes < INLINE_BYTES:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(array).data)
        proto = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        proto.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", self._path.name), ("offset", offset), ("length", array.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        self.initializers.append(proto)
        return name
