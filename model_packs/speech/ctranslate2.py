"""Read a CTranslate2 Whisper model (``model.bin``, binary version 6, spec ``WhisperSpec`` revision 3).

The layout, little-endian: u32 version; string spec name; u32 revision; u32 variable count; per
variable a string name, u8 rank, u32 per dimension, u8 dtype, u32 byte length and the data; then u32
alias count and (alias, target) string pairs. A string is a u16 length, a trailing NUL included, and
the bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.errors import SourceError

VERSION = 6
SPEC = "WhisperSpec"
SPEC_REVISION = 3

_DTYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_MAX_RANK = 4

Variables = dict[str, NDArray[Any]]


class _Reader:
    """A cursor over the file; every read that would pass its end raises SourceError."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def take(self, size: int) -> memoryview:
        end = self._offset + size
        if end > len(self._data):
            raise SourceError("the CTranslate2 model file is truncated")
        view = self._data[self._offset : end]
        self._offset = end
        return view

    def number(self, layout: str) -> int:
        (value,) = struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))
        return int(value)

    def string(self) -> str:
        raw = bytes(self.take(self.number("H")))
        try:
            return raw.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise SourceError("the CTranslate2 model file holds a name that is not ASCII") from error

    def at_end(self) -> bool:
        return self._offset == len(self._data)


def read_model(parts: list[Path]) -> Variables:
    """Read the model whose file is the concatenation of ``parts``; the arrays are read-only views.

    Raises SourceError when the file is not a whole Whisper model of the known version.
    """
    return parse_model(b"".join(part.read_bytes() for part in parts))


def parse_model(data: bytes) -> Variables:
    """Parse the bytes of a ``model.bin``; see ``read_model``."""
    reader = _Reader(data)
    version, spec, revision = reader.number("I"), reader.string(), reader.number("I")
    if (version, spec, revision) != (VERSION, SPEC, SPEC_REVISION):
        raise SourceError(
            f"the CTranslate2 model is {spec!r} revision {revision} in binary version {version}; "
            f"known is {SPEC} revision {SPEC_REVISION} in version {VERSION}"
        )
    variables: Variables = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        variables[name] = _read_variable(reader, name)
    for _ in range(reader.number("I")):
        alias, target = reader.string(), reader.string()
        if target not in variables:
            raise SourceError(f"the CTranslate2 model's alias {alias!r} points at nothing")
        variables.setdefault(alias, variables[target])
    if not reader.at_end():
        raise SourceError("the CTranslate2 model file has bytes after its end")
    return variables


def _read_variable(reader: _Reader, name: str) -> NDArray[Any]:
    rank = reader.number("B")
    if rank > _MAX_RANK:
        raise SourceError(f"variable {name!r} has rank {rank}")
    shape = tuple(reader.number("I") for _ in range(rank))
    dtype = _DTYPES.get(reader.number("B"))
    if dtype is None:
        raise SourceError(f"variable {name!r} has a type that is not known")
    data = reader.take(reader.number("I"))
    values: NDArray[Any] = np.frombuffer(data, dtype=dtype)
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise SourceError(f"variable {name!r} does not fill its shape {shape}") from error


def float32(variables: Variables, name: str) -> NDArray[np.float32]:
    """Return a float variable as float32. Raises SourceError when it is absent or not a float."""
    array = variables.get(name)
    if array is None:
        raise SourceError(f"the CTranslate2 model lacks {name!r}")
    if array.dtype not in (np.float16, np.float32):
        # An int8 export has lost what this build is measured against.
        raise SourceError(f"{name!r} is {array.dtype}; only float16 and float32 models are converted")
    return np.asarray(array, dtype=np.float32)


def scalar(variables: Variables, name: str) -> int:
    """Return an integer setting of the model. Raises SourceError when it is absent."""
    array = variables.get(name)
    if array is None or array.size != 1:
        raise SourceError(f"the CTranslate2 model lacks the setting {name!r}")
    return int(array.reshape(-1)[0])
