"""Read safetensors files: an 8-byte length, a JSON header, then the tensors' bytes.

Written out here because the format is a page long and its package reads bfloat16 only with another
framework's help.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.errors import BuildError

# The format's own bound on the header.
_MAX_HEADER = 100_000_000
_TYPES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class _Stored:
    data: NDArray[np.uint8]
    kind: str
    shape: tuple[int, ...]


class SafetensorsFiles:
    """The tensors of one model, spread over one or more files; data stays on disk until asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the headers. Raises BuildError when a file is not whole or two hold the same tensor."""
        self._stored: dict[str, _Stored] = {}
        for path in paths:
            for name, stored in _read_header(path):
                if name in self._stored:
                    raise BuildError(f"two files hold the tensor {name}")
                self._stored[name] = stored

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a tensor as float32. Raises BuildError when it is absent, of another shape, or not a float."""
        stored = self._stored.get(name)
        if stored is None:
            raise BuildError(f"the model lacks the tensor {name}")
        if stored.shape != shape:
            raise BuildError(
                f"the tensor {name} has the shape {stored.shape}, the configuration says {shape}"
            )
        if stored.kind == "BF16":
            # bfloat16 is the upper half of a float32.
            return (stored.data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if stored.kind not in _TYPES:
            raise BuildError(f"the tensor {name} is of type {stored.kind}; known are {', '.join(_TYPES)}")
        return stored.data.view("<f4" if stored.kind == "F32" else "<f2").astype(np.float32).reshape(shape)


def _read_header(path: Path) -> Iterable[tuple[str, _Stored]]:
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(bytes(data[:8]), "little")
        if data.size < 8 or length > min(_MAX_HEADER, data.size - 8):
            raise BuildError(f"{path.name} is not a whole safetensors file")
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        return [(name, _locate(path, name, entry, data[8 + length :])) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(f"{path.name} is not a safetensors file: {error!r}") from error


def _locate(path: Path, name: str, entry: dict[str, Any], data: NDArray[np.uint8]) -> _Stored:
    kind, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    whole = _TYPES.get(kind)
    if not 0 <= start <= end <= data.size or (whole and end - start != whole * math.prod(shape)):
        raise BuildError(f"{path.name}: the tensor {name} does not fit the file")
    return _Stored(data[start:end], kind, shape)
