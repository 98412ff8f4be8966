"""What a worker may not do, seen from inside a real one, and the filter judged call by call."""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.workers.errors import SandboxError, WorkerError
from appliance.workers.protocol import Limits
from appliance.workers.seccomp import filter_program
from appliance.workers.supervisor import WorkerProcess
from tests.workers.conftest import MakeWorker

SECONDS = 30.0


async def ask(worker: WorkerProcess, do: str, **request: Any) -> Any:
    return msgspec.msgpack.decode(await worker.call({"do": do, **request}, deadline_seconds=SECONDS))


async def test_no_network_no_program_no_other_process(worker: WorkerProcess) -> None:
    outcome = await ask(worker, "attempt")

    assert outcome.pop("unix") == "allowed"
    assert set(outcome.values()) == {"PermissionError"}, outcome


async def test_every_thread_is_under_the_filter_for_good(worker: WorkerProcess) -> None:
    status = await ask(worker, "status")

    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"


async def test_the_environment_is_clean(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "http_proxy", "APPLIANCE_BOOTSTRAP_KEY_FILE", "SOME_TOKEN", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/dev/null")
    environment = await ask(await make_worker(threads=2), "environment")

    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["GOMP_SPINCOUNT"] == "0"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert "/dev/null" not in environment.values()


async def test_limits_hold(make_worker: MakeWorker, tmp_path: Path) -> None:
    worker = await make_worker(limits=Limits(address_space=1 << 30, file_size=0, open_files=40))
    limits = await ask(worker, "limits")

    assert limits == {
        "RLIMIT_CORE": [0, 0],
        "RLIMIT_AS": [1 << 30, 1 << 30],
        "RLIMIT_FSIZE": [0, 0],
        "RLIMIT_NOFILE": [40, 40],
    }
    with pytest.raises(WorkerError, match="memory"):
        await ask(worker, "allocate", bytes=2 << 30)
    with pytest.raises(WorkerError):
        await ask(worker, "write_file", path=str(tmp_path / "file"))
    assert await ask(worker, "allocate", bytes=1 << 20) == 1 << 20
    assert worker.starts == 1


# What the programs below know of themselves: audit architecture, the numbers of socket and socketpair,
# some that are refused and some that everything needs (read, write, mmap, futex, exit_group).
MACHINES = {
    "x86_64": (0xC000003E, [41, 53], [42, 59, 101, 322, 425], [0, 1, 9, 202, 231]),
    "aarch64": (0xC00000B7, [198, 199], [203, 221, 117, 281, 425], [63, 64, 222, 98, 94]),
}
ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def judge(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """Run the BPF program as the kernel would on one system call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, argument, 0, 0, 0, 0, 0)
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = accumulator == value if code == 0x15 else accumulator >= value
            position += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
@given(argument=st.integers(0, 2**64 - 1), pick=st.integers(0, 4))
def test_the_filter_judges_every_call(machine: str, argument: int, pick: int) -> None:
    architecture, sockets, refused, needed = MACHINES[machine]
    program = filter_program(machine)

    assert judge(program, architecture, refused[pick], argument) == EPERM
    assert judge(program, architecture, needed[pick], argument) == ALLOW
    assert judge(program, architecture ^ 1, needed[pick], argument) == KILL
    # The kernel takes the family as an int: only the low half counts.
    family = argument & 0xFFFFFFFF
    expected = ALLOW if family == socket.AF_UNIX else EPERM
    for number in sockets:
        assert judge(program, architecture, number, argument) == expected
        assert judge(program, architecture, number, (argument & ~0xFFFFFFFF) | socket.AF_UNIX) == ALLOW


def test_the_other_interface_of_x86_64_is_refused() -> None:
    program = filter_program("x86_64")

    for number in (0x40000000, 0x40000029, 0xFFFFFFFF):
        assert judge(program, 0xC000003E, number, socket.AF_UNIX) == EPERM


def test_an_unknown_processor_is_said_plainly() -> None:
    with pytest.raises(SandboxError, match="no system-call filter for the processor 'sparc64'"):
        filter_program("sparc64")
