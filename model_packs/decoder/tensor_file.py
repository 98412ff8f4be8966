"""Write tensors one after another into the data file beside an ONNX graph, which maps them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# Pages are mapped whole; smaller alignments make the runtime copy.
ALIGNMENT = 4096
# Below this a tensor stays inside the graph: shape constants must be readable there.
INLINE_BYTES = 1024

# Where bytes lie already, by their hash: the data file's name and the offset in it.
Stored = dict[bytes, tuple[str, int]]


class TensorFile:
    """The data file ``model.onnx.data``, open for writing; a context manager.

    ``stored`` is shared by the graphs of one folder: what another's file holds is not written again.
    """

    def __init__(self, path: Path, stored: Stored | None = None) -> None:
        self._path = path
        self._stored: Stored = {} if stored is None else stored
        self._file: IO[bytes] | None = None
        self._known: set[str] = set()
        self.initializers: list[Any] = []

    def __enter__(self) -> TensorFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Store ``array`` as the graph's initializer ``name``, once, and return the name."""
        from onnx import TensorProto, helper, numpy_helper

        if name in self._known:
            return name
        self._known.add(name)
        if array.nbytes < INLINE_BYTES:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        location, offset = self._place(np.ascontiguousarray(array))
        proto = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        proto.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        self.initializers.append(proto)
        return name

    def _place(self, array: NDArray[Any]) -> tuple[str, int]:
        """Return the file and offset where the array's bytes lie, written there if they are new."""
        assert self._file is not None
        digest = hashlib.sha256(array.data).digest()
        if digest not in self._stored:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(array.data)
            self._stored[digest] = self._path.name, offset
        return self._stored[digest]
