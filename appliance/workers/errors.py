"""The errors of the workers room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class WorkerError(ApplianceError):
    """A worker's job failed; one that the worker refused carries the status and text that it gave."""


class WorkerStoppedError(WorkerError):
    """The worker process ended while it had the job; the next job gets a fresh one."""


class WorkerTimeoutError(WorkerError):
    """The job passed its deadline and was ended."""

    status = 503
    code = "timeout"


class WorkerStartError(WorkerError):
    """The worker cannot be started now."""

    status = 503


class SandboxError(Exception):
    """A worker could not confine itself; it does no work then."""
