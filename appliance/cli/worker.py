"""``appliance worker KIND --fd N``: the hidden command that a worker process is started with."""

from __future__ import annotations

import importlib

import msgspec

from appliance.workers.child import Handler, OpenKind, run

# Module and function of each kind, imported only in its own process.
KINDS = {
    "speech": ("appliance.engines.speech.worker", "open_speech"),
}


def run_worker(kind: str, fd: int) -> None:
    """Serve as a worker of ``kind`` over the inherited socket ``fd`` until the service hangs up."""
    if kind not in KINDS:
        raise SystemExit(f"unknown kind of worker {kind!r}; known are {', '.join(sorted(KINDS))}")

    def open_kind(arguments: msgspec.Raw) -> Handler:
        # Imported here, so that it happens confined.
        module, function = KINDS[kind]
        opener: OpenKind = getattr(importlib.import_module(module), function)
        return opener(arguments)

    run(fd, open_kind)
