"""``appliance worker KIND --fd N``: the hidden command that a worker process is started with."""

from __future__ import annotations

import importlib

# Module and function of each kind, imported only in its own process, after nothing else.
KINDS = {
    "speech": ("appliance.engines.speech.worker", "open_speech"),
}


def run_worker(kind: str, fd: int) -> None:
    """Serve as a worker of ``kind`` over the inherited socket ``fd`` until the service hangs up."""
    if kind not in KINDS:
        raise SystemExit(f"unknown kind of worker {kind!r}; known are {', '.join(sorted(KINDS))}")
    from appliance.workers.child import run

    def open_kind(arguments: object) -> object:
        # Imported here, so that it happens confined.
        module, function = KINDS[kind]
        return getattr(importlib.import_module(module), function)(arguments)

    run(fd, open_kind)
