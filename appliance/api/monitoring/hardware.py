"""GET /gpu_info: what the box computes on, in the three words that benchmark clients print."""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from litestar import get

# Inference runs on the processor alone, whatever else is in the box.
NONE = "none"
# How Linux calls the processor's name, by architecture.
NAME_FIELDS = ("model name", "Model", "cpu model", "Hardware")


def _operation_id(_handler: Any, _method: Any, path: list[Any]) -> str:
    return "gpuInfo" if len(path) == 1 else "gpuInfoOfVersion"


# Beside the version and within it: benchmark clients are given either as the platform's address.
@get(
    ["/gpu_info", "/v1/gpu_info"],
    operation_id=_operation_id,
    tags=["Monitoring"],
    sync_to_thread=True,
    access="key",
)
def gpu_info() -> dict[str, str]:
    """Name the processor; no graphics driver and no CUDA are in use."""
    return {"DRIVER VERSION": NONE, "CUDA VERSION": NONE, "HARDWARE": processor_name()}


@functools.cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as the system knows it; without one, its architecture."""
    with suppress(OSError):
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            field, _, name = line.partition(":")
            if field.strip() in NAME_FIELDS and name.strip():
                return name.strip()
    return platform.processor() or platform.machine()
