"""A system-call filter for the worker's whole process: no network, no other process, no changed file.

The filter is classic BPF, written here and loaded with seccomp(2) through ctypes. It names what is
refused (with EPERM) rather than what is allowed, because what numpy, OpenMP and the decoders call
differs between C libraries; the refused calls are those that a hijacked decoder would need to talk to
somebody, to run a program, or to reach another process. A call through another processor's interface,
which would have other numbers, ends the process.

Refused: sockets of every kind (the pair that the worker was born with stays), new processes (threads
are free) and programs, signals to anybody but the worker itself, looking into or limiting another
process by system call, opening a file for writing, and creating, removing, renaming, linking, cutting,
or changing the owner, mode, times or attributes of one.

Not refused: a filter sees no paths, so every file and directory that the service's user may read can be
opened for reading, /proc of other processes included as far as the kernel lets the same user look. What
the worker has open (its socket, its standard error, a job's descriptors) it uses as it was opened; a
size limit of zero on files (sandbox.py) is what keeps it from writing to those. Memory, processor time
and threads are bounded by limits and deadlines, not here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
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
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data; of an argument the low half, on a little-endian machine.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _ARGUMENT_BYTES = 0, 4, 16, 8

# linux/sched.h
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
# O_WRONLY, O_RDWR, O_CREAT and O_TRUNC: the same on both architectures
_OPEN_TO_WRITE = 0x243
# F_SETOWN, F_SETSIG, F_SETOWN_EX: they have the kernel send signals to other processes
_FCNTL_SIGNALS = (8, 10, 15)
# TIOCSTI types into a terminal; FIOSETOWN and SIOCSPGRP are F_SETOWN again
_IOCTL_REFUSED = (0x5412, 0x8901, 0x8902)


class _Architecture(msgspec.Struct, frozen=True, kw_only=True):
    audit: int
    seccomp: int
    # Numbers from here on belong to another interface (x32), or None.
    foreign_from: int | None
    clone: int
    # kill(2) and tgkill(2): allowed to the worker itself only.
    signals: tuple[int, ...]
    prlimit64: int
    # The calls that open a file, with the position of their flags.
    opens: tuple[tuple[int, int], ...]
    fcntl: int
    ioctl: int
    refused: tuple[int, ...]


# The same on every architecture.
_REFUSED_EVERYWHERE = (
    *(425, 426, 427),  # io_uring, which opens sockets without socket(2)
    *(424, 434, 438, 440),  # pidfd_send_signal pidfd_open pidfd_getfd process_madvise
    *(428, 429, 430, 432, 442),  # open_tree move_mount fsopen fsmount mount_setattr
    *(452, 463, 466, 469),  # fchmodat2 setxattrat removexattrat file_setattr
)
# ENOSYS: who meets it takes the older call, whose arguments can be seen. clone3 and openat2.
_ABSENT_EVERYWHERE = (435, 437)

_ARCHITECTURES = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        seccomp=317,
        foreign_from=0x40000000,
        clone=56,
        signals=(62, 234),
        prlimit64=302,
        opens=((2, 1), (257, 2)),
        fcntl=72,
        ioctl=16,
        refused=(
            *(41, 53, 42, 49, 50),  # socket socketpair connect bind listen
            *(57, 58, 59, 322),  # fork vfork execve execveat
            *(200, 129, 297),  # tkill rt_sigqueueinfo rt_tgsigqueueinfo
            *(101, 310, 311),  # ptrace process_vm_readv process_vm_writev
            *(298, 321, 323),  # perf_event_open bpf userfaultfd
            *(248, 249, 250),  # add_key request_key keyctl
            *(165, 166, 155, 161),  # mount umount2 pivot_root chroot
            *(272, 308, 304),  # unshare setns open_by_handle_at
            *(175, 313, 176, 246, 320),  # init_module finit_module delete_module kexec_load kexec_file_load
            *(85, 76, 77),  # creat truncate ftruncate
            *(87, 263, 84, 82, 264, 316),  # unlink unlinkat rmdir rename renameat renameat2
            *(83, 258, 133, 259),  # mkdir mkdirat mknod mknodat
            *(86, 265, 88, 266),  # link linkat symlink symlinkat
            *(90, 91, 268, 92, 93, 94, 260),  # chmod fchmod fchmodat chown fchown lchown fchownat
            *(132, 235, 261, 280),  # utime utimes futimesat utimensat
            *(188, 189, 190, 197, 198, 199),  # setxattr lsetxattr fsetxattr and the same for removexattr
            *_REFUSED_EVERYWHERE,
        ),
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        seccomp=277,
        foreign_from=None,
        clone=220,
        signals=(129, 131),
        prlimit64=261,
        opens=((56, 2),),
        fcntl=25,
        ioctl=29,
        refused=(
            *(198, 199, 203, 200, 201),
            *(221, 281),
            *(130, 138, 240),
            *(117, 270, 271),
            *(241, 280, 282),
            *(217, 218, 219),
            *(40, 39, 41, 51),
            *(97, 268, 265),
            *(105, 273, 106, 104, 294),
            *(45, 46),
            *(35, 38, 276),
            *(34, 33),
            *(37, 36),
            *(52, 53, 55, 54),
            *(88,),
            *(5, 6, 7, 14, 15, 16),
            *_REFUSED_EVERYWHERE,
        ),
    ),
}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one struct sock_filter."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


_ALLOW = _instruction(_RETURN, _RETURN_ALLOW)
_REFUSE = _instruction(_RETURN, _RETURN_ERRNO | errno.EPERM)
_ABSENT = _instruction(_RETURN, _RETURN_ERRNO | errno.ENOSYS)
_KILL = _instruction(_RETURN, _RETURN_KILL_PROCESS)


def _judge(number: int, argument: int, tests: list[tuple[int, int, bytes]], otherwise: bytes) -> list[bytes]:
    """Judge the call ``number`` by the low half of an argument: the first test that holds decides.

    A test is a jump's code, what it compares with, and the verdict.
    """
    block = [
        _instruction(_JUMP_EQUAL, number, if_false=2 * len(tests) + 2),
        _instruction(_LOAD, _FIRST_ARGUMENT + argument * _ARGUMENT_BYTES),
    ]
    for code, value, verdict in tests:
        block += [_instruction(code, value, if_false=1), verdict]
    return [*block, otherwise]


def filter_program(machine: str, process: int) -> bytes:
    """Return the BPF program for the processor called ``machine`` (as in uname). Raises SandboxError.

    ``process`` is the id of the process it is for, the only one that signals may go to.
    """
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise SandboxError(f"there is no system-call filter for the processor {machine!r}")
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture.audit, if_true=1),
        _KILL,
        _instruction(_LOAD, _NUMBER),
    ]
    if architecture.foreign_from is not None:
        program += [_instruction(_JUMP_GREATER_EQUAL, architecture.foreign_from, if_false=1), _REFUSE]
    for numbers, verdict in ((architecture.refused, _REFUSE), (_ABSENT_EVERYWHERE, _ABSENT)):
        for number in numbers:
            program += [_instruction(_JUMP_EQUAL, number, if_false=1), verdict]
    threads_only = [(_JUMP_BITS, _CLONE_NAMESPACES, _REFUSE), (_JUMP_BITS, _CLONE_THREAD, _ALLOW)]
    program += _judge(architecture.clone, 0, threads_only, _REFUSE)
    for number in architecture.signals:
        program += _judge(number, 0, [(_JUMP_EQUAL, process, _ALLOW)], _REFUSE)
    # 0 is the caller itself.
    program += _judge(architecture.prlimit64, 0, [(_JUMP_EQUAL, 0, _ALLOW)], _REFUSE)
    for number, flags in architecture.opens:
        program += _judge(number, flags, [(_JUMP_BITS, _OPEN_TO_WRITE, _REFUSE)], _ALLOW)
    commands = ((architecture.fcntl, _FCNTL_SIGNALS), (architecture.ioctl, _IOCTL_REFUSED))
    for number, values in commands:
        program += _judge(number, 1, [(_JUMP_EQUAL, value, _REFUSE) for value in values], _ALLOW)
    program.append(_ALLOW)
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
    code = filter_program(machine, os.getpid())
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
