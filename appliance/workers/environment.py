"""How a worker process is started: in a cleaned environment."""

from __future__ import annotations

import os

from appliance.frozen import is_frozen, tree

# What a worker may inherit. Everything else stays out: proxies, tokens, preloaded libraries.
_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "PATH", "TMPDIR", "TZ")


def worker_environment(threads: int) -> dict[str, str]:
    """Return a worker's whole environment; ``threads`` is what its numerical libraries may use."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads sleep: with two on two busy cores, spinning cost up to 13 times the time.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "OPENBLAS_NUM_THREADS": "1",
        # Fewer heaps: memory stays flat over many jobs.
        "MALLOC_ARENA_MAX": "2",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }
    if not is_frozen():
        environment["PYTHONPATH"] = str(tree())
    return environment
