"""What a worker may not do, seen from inside a real one, and the filter judged call by call."""

from __future__ import annotations

import errno
import os
import signal
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


async def test_no_network_no_other_process_no_changed_file(worker: WorkerProcess, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"whole")
    before = file.stat()
    outcome = await ask(worker, "attempt", directory=str(tmp_path))

    for allowed in ("thread", "read", "own signal", "own limits"):
        assert outcome.pop(allowed) == "allowed", allowed
    assert set(outcome.values()) == {"PermissionError"}, outcome
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"whole"
    assert file.stat().st_ctime_ns == before.st_ctime_ns


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


class Machine(msgspec.Struct, frozen=True):
    """The audit architecture and call numbers of a processor, from the kernel's tables."""

    audit: int
    refused: list[int]
    needed: list[int]
    clone: int
    signals: list[int]
    prlimit64: int
    openat: int


# refused: socket, socketpair, connect, execve, ptrace, open_by_handle_at, io_uring_setup, tkill,
# pidfd_open, process_vm_writev, unlinkat, renameat2, mkdirat, fchmodat, ftruncate, utimensat;
# needed: read, write, mmap, futex, exit_group.
MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        [41, 53, 42, 59, 101, 304, 425, 200, 434, 311, 263, 316, 258, 268, 77, 280, 57, 58, 85],
        [0, 1, 9, 202, 231],
        clone=56,
        signals=[62, 234],
        prlimit64=302,
        openat=257,
    ),
    "aarch64": Machine(
        0xC00000B7,
        [198, 199, 203, 221, 117, 265, 425, 130, 434, 271, 35, 276, 34, 53, 46, 88],
        [63, 64, 222, 98, 94],
        clone=220,
        signals=[129, 131],
        prlimit64=261,
        openat=56,
    ),
}
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
KILL = 0x80000000
PID = 4711
THREAD = 0x003D0F00  # what a C library starts a thread with
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def judge(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run the BPF program as the kernel would on one system call."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
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
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value}[code]
            position += if_true if holds else if_false


@pytest.mark.parametrize("name", MACHINES)
@given(argument=st.integers(0, 2**64 - 1))
def test_the_filter_judges_every_call(name: str, argument: int) -> None:
    machine, program = MACHINES[name], filter_program(name, PID)
    # The kernel takes ids and flags as ints: only the low half counts.
    high, low = argument & ~0xFFFFFFFF, argument & 0xFFFFFFFF

    for number in machine.refused:
        assert judge(program, machine.audit, number, argument) == EPERM
    for number in machine.needed:
        assert judge(program, machine.audit, number, argument) == ALLOW
        assert judge(program, machine.audit ^ 1, number, argument) == KILL
    for number in (435, 437):  # clone3, openat2
        assert judge(program, machine.audit, number, argument) == ENOSYS
    for number in machine.signals:
        assert judge(program, machine.audit, number, argument) == (ALLOW if low == PID else EPERM)
        assert judge(program, machine.audit, number, high | PID) == ALLOW
    assert judge(program, machine.audit, machine.prlimit64, argument) == (ALLOW if low == 0 else EPERM)
    assert judge(program, machine.audit, machine.prlimit64, high) == ALLOW
    is_writing = bool(low & WRITING)
    assert judge(program, machine.audit, machine.openat, 0, 0, argument) == (EPERM if is_writing else ALLOW)
    assert judge(program, machine.audit, machine.openat, 0, 0, argument & ~WRITING) == ALLOW


@pytest.mark.parametrize("name", MACHINES)
def test_a_thread_is_no_process(name: str) -> None:
    machine, program = MACHINES[name], filter_program(name, PID)

    assert judge(program, machine.audit, machine.clone, THREAD) == ALLOW
    for flags in (signal.SIGCHLD, 0x4100 | signal.SIGCHLD, 0x10000000 | THREAD, 1 << 48):
        assert judge(program, machine.audit, machine.clone, flags) == EPERM


def test_the_other_interface_of_x86_64_is_refused() -> None:
    program = filter_program("x86_64", PID)

    for number in (0x40000000, 0x40000029, 0xFFFFFFFF):
        assert judge(program, 0xC000003E, number, PID) == EPERM


def test_an_unknown_processor_is_said_plainly() -> None:
    with pytest.raises(SandboxError, match="no system-call filter for the processor 'sparc64'"):
        filter_program("sparc64", PID)
