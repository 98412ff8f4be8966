"""A program that serves as a worker for the tests: ``python kinds.py worker KIND --fd N``."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
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


def large(job: Job, request: Any) -> object:
    return bytes(request["bytes"])


def lie(job: Job, request: Any) -> object:
    """Send a frame that is none of the protocol's, then fall silent."""
    job._channel.send_frame(bytes.fromhex(request["frame"]))
    return ignore(job, request)


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
    directory = Path(request["directory"])
    file, new = directory / "file", directory / "new"
    parent = os.getppid()

    def system(name: str, *arguments: Any) -> Callable[[], None]:
        def call() -> None:
            if getattr(libc, name)(*arguments) < 0:
                raise OSError(ctypes.get_errno(), name)

        return call

    def open_socket(family: int, kind: int) -> Callable[[], object]:
        return lambda: socket.socket(family, kind).close()

    def threads() -> None:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    return {
        "thread": outcome(threads),
        "read": outcome(file.read_bytes),
        "own signal": outcome(lambda: os.kill(os.getpid(), 0)),
        "own limits": outcome(lambda: resource.prlimit(0, resource.RLIMIT_NOFILE)),
        "inet": outcome(open_socket(socket.AF_INET, socket.SOCK_STREAM)),
        "inet udp": outcome(open_socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "inet6": outcome(open_socket(socket.AF_INET6, socket.SOCK_STREAM)),
        "netlink": outcome(open_socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "packet": outcome(open_socket(socket.AF_PACKET, socket.SOCK_RAW)),
        "unix": outcome(open_socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        # A datagram pair could still send to any name.
        "unix pair": outcome(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "exec": outcome(lambda: os.execv("/bin/true", ["true"])),  # noqa: S606 - it must not start
        "spawn": outcome(lambda: subprocess.run(["/bin/true"], check=True)),
        "fork": outcome(os.fork),
        "vfork": outcome(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        "ptrace": outcome(system("ptrace", 0, 0, 0, 0)),
        "signal": outcome(lambda: os.kill(parent, 0)),
        "signal to all": outcome(lambda: os.kill(-1, 0)),
        "signal to the group": outcome(lambda: os.kill(0, 0)),
        "pidfd": outcome(lambda: os.pidfd_open(parent)),
        "owner of a descriptor": outcome(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent)),
        "limits of another": outcome(lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE)),
        "write": outcome(lambda: os.open(file, os.O_WRONLY)),
        "read and write": outcome(lambda: os.open(file, os.O_RDWR)),
        "create": outcome(lambda: os.open(new, os.O_CREAT)),
        "empty": outcome(lambda: os.open(file, os.O_TRUNC)),
        "truncate": outcome(lambda: os.truncate(file, 0)),
        "unlink": outcome(file.unlink),
        "rename": outcome(lambda: file.rename(new)),
        "mkdir": outcome(new.mkdir),
        "rmdir": outcome(directory.rmdir),
        "link": outcome(lambda: new.hardlink_to(file)),
        "symlink": outcome(lambda: new.symlink_to(file)),
        "fifo": outcome(lambda: os.mkfifo(new)),
        "chmod": outcome(lambda: file.chmod(0o777)),
        "chown": outcome(lambda: os.chown(file, os.getuid(), os.getgid())),
        "times": outcome(lambda: os.utime(file)),
        "attribute": outcome(lambda: os.setxattr(file, "user.a", b"b")),
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
        large,
        lie,
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
