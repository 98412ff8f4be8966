"""A system-call filter for the worker's whole process: no network, no other program, no reach into others.

The filter is classic BPF, written here and loaded with seccomp(2) through ctypes. It names what is
refused (with EPERM) rather than what is allowed, because what numpy, OpenMP and the decoders call
differs between C libraries; the refused calls are those that a hijacked decoder would need to talk to
somebody, to run a program, or to look into another process. A call through another processor's
interface, which would have other numbers, ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct

import msgspec

from appliance.workers.errors import SandboxError

# linux/seccomp.h
_SET_MODE_FILTER = 1
_FLAG_ALL_THREADS = 1
_RETURN_ALLOW = 0x7FFF0000
_RETURN_ERRNO = 0x00050000
_RETURN_KILL_PROCESS = 0x80000000
# linux/bpf_common.h: load a word, jumps with an immediate, return
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
# Offsets in struct seccomp_data; the low half of the first argument on a little-endian machine.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


class _Architecture(msgspec.Struct, frozen=True, kw_only=True):
    audit: int
    seccomp: int
    # Numbers from here on belong to another interface (x32), or None.
    foreign_from: int | None
    # socket(2) and socketpair(2): allowed for AF_UNIX only.
    sockets: tuple[int, ...]
    refused: tuple[int, ...]


# The same on every architecture: io_uring (which opens sockets without socket(2)), pidfd_getfd, and
# the new mount calls.
_REFUSED_EVERYWHERE = (425, 426, 427, 438, 428, 429, 430, 432)

_ARCHITECTURES = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        seccomp=317,
        foreign_from=0x40000000,
        sockets=(41, 53),
        refused=(
            *(42, 49, 50),  # connect bind listen
            *(59, 322),  # execve execveat
            *(101, 310, 311),  # ptrace process_vm_readv process_vm_writev
            *(298, 321, 323),  # perf_event_open bpf userfaultfd
            *(248, 249, 250),  # add_key request_key keyctl
            *(
                165,
                166,
                155,
                161,
                272,
                308,
                304,
            ),  # mount umount2 pivot_root chroot unshare setns open_by_handle_at
            *(175, 313, 176, 246, 320),  # init_module finit_module delete_module kexec_load kexec_file_load
            *_REFUSED_EVERYWHERE,
        ),
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        seccomp=277,
        foreign_from=None,
        sockets=(198, 199),
        refused=(
            *(203, 200, 201),
            *(221, 281),
            *(117, 270, 271),
            *(241, 280, 282),
            *(217, 218, 219),
            *(40, 39, 41, 51, 97, 268, 265),
            *(105, 273, 106, 104, 294),
            *_REFUSED_EVERYWHERE,
        ),
    ),
}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one struct sock_filter."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


def filter_program(machine: str) -> bytes:
    """Return the BPF program for the processor called ``machine`` (as in uname). Raises SandboxError."""
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise SandboxError(f"there is no system-call filter for the processor {machine!r}")
    refuse = _instruction(_RETURN, _RETURN_ERRNO | errno.EPERM)
    allow = _instruction(_RETURN, _RETURN_ALLOW)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture.audit, if_true=1),
        _instruction(_RETURN, _RETURN_KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    if architecture.foreign_from is not None:
        program += [_instruction(_JUMP_GREATER_EQUAL, architecture.foreign_from, if_false=1), refuse]
    for number in architecture.refused:
        program += [_instruction(_JUMP_EQUAL, number, if_false=1), refuse]
    for number in architecture.sockets:
        program += [
            _instruction(_JUMP_EQUAL, number, if_false=4),
            _instruction(_LOAD, _FIRST_ARGUMENT),
            _instruction(_JUMP_EQUAL, int(socket.AF_UNIX), if_false=1),
            allow,
            refuse,
        ]
    program.append(allow)
    return b"".join(program)


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_filter() -> None:
    """Put every thread of this process under the filter, for good.

    PR_SET_NO_NEW_PRIVS must have been set. Raises SandboxError when the processor is not known or the
    kernel has no filters.
    """
    machine = platform.machine()
    code = filter_program(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _ARCHITECTURES[machine].seccomp
    result = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_ulong(_SET_MODE_FILTER),
        ctypes.c_ulong(_FLAG_ALL_THREADS),
        ctypes.byref(program),
    )
    if result != 0:
        reason = os.strerror(ctypes.get_errno()) if result < 0 else f"thread {result} could not follow"
        raise SandboxError(f"the kernel did not take the system-call filter: {reason}")
