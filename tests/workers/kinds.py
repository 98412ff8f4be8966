"""A program that serves as a worker for the tests: ``python kinds.py worker KIND --fd N``."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError
from appliance.workers.child import Job, run


def open_test_kind(arguments: msgspec.Raw) -> Callable[[Job], object]:
    settings = msgspec.msgpack.decode(arguments)
    if settings == "refuse to open":
        raise InvalidRequestError("there is nothing to open")
    if settings == "die while opening":
        os.kill(os.getpid(), signal.SIGKILL)

    def handle(job: Job) -> object:
        request = msgspec.msgpack.decode(job.arguments)
        return ACTIONS[request["do"]](job, request)

    return handle


def echo(job: Job, request: Any) -> object:
    return request["value"]


def count(job: Job, request: Any) -> object:
    for number in range(request["to"]):
        job.emit(number)
    return "done"


def read(job: Job, request: Any) -> object:
    return [os.pread(fd, 1000, 0) for fd in job.fds]


def wait(job: Job, request: Any) -> object:
    """Say that it runs, then wait for the end that ``check`` brings."""
    job.emit("running")
    while True:
        job.check()
        signal.sigtimedwait([], 0.01)


def ignore(job: Job, request: Any) -> object:
    """Say that it runs, then hear nothing any more."""
    job.emit("running")
    while True:
        signal.pause()


def die(job: Job, request: Any) -> object:
    os.kill(os.getpid(), request["signal"])
    return None


def refuse(job: Job, request: Any) -> object:
    raise InvalidRequestError("not this one", param="value", code="odd")


def fail(job: Job, request: Any) -> object:
    raise ValueError("a secret of the worker")


def say(job: Job, request: Any) -> object:
    print(request["text"], file=sys.stderr)
    return None


def environment(job: Job, request: Any) -> object:
    return dict(os.environ)


def allocate(job: Job, request: Any) -> object:
    return len(bytearray(request["bytes"]))


def write_file(job: Job, request: Any) -> object:
    with open(request["path"], "wb") as file:  # noqa: PTH123
        file.write(b"x")
    return None


def limits(job: Job, request: Any) -> object:
    kinds = ("RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
    return {kind: resource.getrlimit(getattr(resource, kind)) for kind in kinds}


def status(job: Job, request: Any) -> object:
    with open("/proc/self/status") as file:  # noqa: PTH123
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def attempt(job: Job, request: Any) -> object:
    """Try what the sandbox forbids; return what came of it by name."""

    def outcome(action: Callable[[], object]) -> str:
        try:
            action()
        except OSError as error:
            return type(error).__name__
        return "allowed"

    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace() -> None:
        if libc.ptrace(0, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("/nowhere")

    def open_socket(family: int, kind: int) -> Callable[[], object]:
        return lambda: socket.socket(family, kind).close()

    return {
        "inet": outcome(open_socket(socket.AF_INET, socket.SOCK_STREAM)),
        "inet udp": outcome(open_socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "inet6": outcome(open_socket(socket.AF_INET6, socket.SOCK_STREAM)),
        "netlink": outcome(open_socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "packet": outcome(open_socket(socket.AF_PACKET, socket.SOCK_RAW)),
        "unix": outcome(open_socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        "unix connect": outcome(connect),
        "exec": outcome(lambda: subprocess.run(["/bin/true"], check=True)),
        "ptrace": outcome(ptrace),
    }


ACTIONS: dict[str, Callable[[Job, Any], object]] = {
    function.__name__: function
    for function in (
        echo,
        count,
        read,
        wait,
        ignore,
        die,
        refuse,
        fail,
        say,
        environment,
        allocate,
        write_file,
        limits,
        status,
        attempt,
    )
}

if __name__ == "__main__":
    run(int(sys.argv[4]), open_test_kind)
