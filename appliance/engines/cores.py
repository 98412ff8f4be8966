"""Who may use the cores now: one lease at a time for one ONNX Runtime run.

Spinning thread pools that together exceed the cores lose ten-fold, so every session has
intra-op threads = cores and runs only while it holds the lease. Leases are granted by priority,
then by arrival; they are short (a prefill chunk, a decode step, an encoder batch), so nobody
starves while the holders give the lease back between steps.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def usable_cores() -> int:
    """Return how many cores this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0))


class Cores:
    """The lease on the cores. ``threads`` is the intra-op thread count of every session."""

    def __init__(self, threads: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds that only grow."""
        self.threads = threads or usable_cores()
        self._clock = clock
        self._lock = threading.Lock()
        self._held = False
        # When the present run was given the cores.
        self._since = 0.0
        self._arrival = itertools.count()
        self._waiting: list[tuple[int, int, threading.Event]] = []

    @contextmanager
    def lease(self, priority: int = 0) -> Iterator[None]:
        """Hold the cores for one run; a higher ``priority`` is served first, then the earlier arrival."""
        granted: threading.Event | None = None
        with self._lock:
            if self._held:
                granted = threading.Event()
                heapq.heappush(self._waiting, (-priority, next(self._arrival), granted))
            else:
                self._held, self._since = True, self._clock()
        if granted is not None:
            granted.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._since = self._clock()
                    heapq.heappop(self._waiting)[2].set()  # ownership passes on without a gap
                else:
                    self._held = False

    @property
    def waiting(self) -> int:
        """How many runs wait for the cores."""
        with self._lock:
            return len(self._waiting)

    @property
    def run_seconds(self) -> float | None:
        """Seconds that the present run has had the cores for; None while they are free."""
        with self._lock:
            return self._clock() - self._since if self._held else None

    def session(self, graph: Path, threads: int = 0, **entries: str) -> Any:
        """Open an ONNX Runtime session on ``graph`` with this box's thread settings, CPU provider only.

        ``threads`` is at most ``self.threads``, and that when 0. ``entries`` are further session config
        entries, dots written as double underscores.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(threads or self.threads, self.threads)
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Planning which tensors may share memory compares each with all before it: 1.2 s for a decoder graph of
        # 1,500 nodes. It finds next to none, because their lengths are open; the arena uses memory again anyway.
        options.enable_mem_reuse = False
        # Threads stop spinning when a run ends, so that sessions can take turns.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not _multiplies_bytes_exactly():
            # Else products of unsigned by signed bytes saturate on this processor.
            options.add_session_config_entry("session.x64quantprecision", "1")
        for name, value in entries.items():
            options.add_session_config_entry(name.replace("__", "."), value)
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


@functools.cache
def _multiplies_bytes_exactly() -> bool:
    """Return whether the processor sums products of bytes in 32 bits (VNNI, AMX; all but x86).

    Where it does, asking for precision would choose slower kernels.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    return "\nflags" not in flags or any(flag in flags for flag in (" avx512_vnni", " avx_vnni", " amx_int8"))
