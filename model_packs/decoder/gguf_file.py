"""Read a GGUF file's header and tensors.

The format is the one of ggml's ``docs/gguf.md``, versions 2 and 3, little endian. The ``gguf``
package dequantises; its reader is not used because it takes ten seconds for a vocabulary of 50,000.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.errors import BuildError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# Far above any real file; a hostile count must not make a list that fills the memory.
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: ``shape`` outermost first, ``kind`` ggml's type number, ``offset`` in the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """A cursor over the mapped file; every read checks that it stays inside."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.position:
            raise BuildError("the GGUF file ends inside its header")
        start, self.position = self.position, self.position + size
        return self.data[start : self.position]

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self) -> int:
        value: int = self.scalar("<Q")
        if value > _MAX_ITEMS:
            raise BuildError(f"the GGUF header counts {value} items, refused")
        return value

    def string(self) -> str:
        return bytes(self.take(self.scalar("<Q"))).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner = self.scalar("<I")
            if inner == _ARRAY:
                raise BuildError("the GGUF header nests arrays, refused")
            items = self.count()
            if inner == _STRING:
                return [self.string() for _ in range(items)]
            form = self.form(inner)
            return [item for (item,) in struct.iter_unpack(form, self.take(items * struct.calcsize(form)))]
        return self.scalar(self.form(kind))

    def form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise BuildError(f"the GGUF header has a value of unknown type {kind}")
        return _SCALARS[kind]


class GgufFile:
    """An open GGUF file: ``fields`` by key, ``tensors`` by name; tensor data stays on disk until asked for."""

    def __init__(self, path: Path) -> None:
        """Parse the header. Raises BuildError when it is not a GGUF of version 2 or 3 or is cut short."""
        try:
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
            header = _Header(self._data.data)
            if bytes(header.take(4)) != b"GGUF" or header.scalar("<I") not in (2, 3):
                raise BuildError(f"{path.name} is not a GGUF file of version 2 or 3")
            self._read(header)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped; text may not be UTF-8
            raise BuildError(f"{path.name} cannot be read as GGUF: {error}") from error

    def _read(self, header: _Header) -> None:
        tensors, fields = header.count(), header.count()
        self.fields: dict[str, Any] = {}
        for _ in range(fields):
            key = header.string()
            self.fields[key] = header.value(header.scalar("<I"))
        self.tensors: dict[str, GgufTensor] = {}
        for _ in range(tensors):
            name, dimensions = header.string(), header.scalar("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise BuildError(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(header.scalar("<Q") for _ in range(dimensions))[::-1]
            self.tensors[name] = GgufTensor(shape, header.scalar("<I"), header.scalar("<Q"))
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise BuildError("the GGUF header has no valid alignment")
        self._start = -(-header.position // alignment) * alignment

    @property
    def is_float(self) -> bool:
        """Whether no tensor is quantised."""
        from gguf.constants import GGMLQuantizationType

        floats = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
        return all(tensor.kind in floats for tensor in self.tensors.values())

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantised to float32.

        Raises BuildError when it is absent, of an unknown type, or beyond the file's end.
        """
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        found = self.tensors.get(name)
        if found is None:
            raise BuildError(f"the GGUF file lacks the tensor {name}")
        try:
            kind = GGMLQuantizationType(found.kind)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise BuildError(f"tensor {name} is of unknown type {found.kind}") from error
        columns = found.shape[-1] if found.shape else 1
        bytes_needed = math.prod(found.shape) // block * size
        start = self._start + found.offset
        if columns % block or start + bytes_needed > self._data.size:
            raise BuildError(f"tensor {name} does not fit the file")
        raw = self._data[start : start + bytes_needed].reshape(*found.shape[:-1], columns // block * size)
        try:
            if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                stored = np.float32 if kind == GGMLQuantizationType.F32 else np.float16
                return raw.view(stored).astype(np.float32)
            return np.asarray(dequantize(raw, kind), dtype=np.float32)
        except NotImplementedError as error:
            raise BuildError(f"tensor {name} is of type {kind.name}, which cannot be dequantised") from error
