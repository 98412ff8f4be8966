"""Checks of what the machine is made of: processor, memory, disk."""

from __future__ import annotations

from appliance.doctor.findings import Finding, Level, gib
from appliance.doctor.machine import Machine
from appliance.packs.manifest import Manifest

# What the published whisper.cpp wheel is compiled for; without one of them it dies with SIGILL.
NEEDED_FLAGS = ("avx2", "bmi2", "f16c", "fma")
X86 = frozenset({"x86_64", "AMD64"})
KNOWN_ARCHITECTURES = X86 | {"aarch64"}

# The interpreter, the libraries and one worker, without any model (measured: 150 to 250 MB).
BASE_MEMORY = 300 << 20

LITTLE_DISK = 256 << 20
ENOUGH_DISK = 2 << 30


def check_cpu(machine: Machine) -> Finding:
    """Check that the processor runs the inference libraries at all."""

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="cpu", level=level, title="Processor", detail=detail, remedy=remedy)

    if machine.architecture not in KNOWN_ARCHITECTURES:
        return finding(
            "error",
            f"{machine.architecture} is not a supported architecture.",
            "Use a 64-bit x86 or ARM machine.",
        )
    if machine.architecture not in X86:
        return finding("ok", machine.architecture)
    if machine.cpu_flags is None:
        return finding(
            "warning",
            "The processor's features cannot be read.",
            f"Make sure that it has {_in_words(NEEDED_FLAGS)} (any Intel since 2013 or AMD since 2015 that is no "
            "Atom or Celeron).",
        )
    missing = tuple(flag for flag in NEEDED_FLAGS if flag not in machine.cpu_flags)
    if missing:
        return finding(
            "error",
            f"The processor lacks {_in_words(missing)}: speech recognition would crash.",
            "Use a machine with these features; in a virtual machine, pass the host's processor through "
            "(CPU type 'host').",
        )
    return finding("ok", f"{machine.architecture} with {_in_words(NEEDED_FLAGS)}")


def check_cores(machine: Machine) -> Finding:
    """Check that there is more than one core."""
    if machine.cores == 1:
        return Finding(
            check="cores",
            level="warning",
            title="Cores",
            detail="Only one core may be used: answers will be slow and keep each other waiting.",
            remedy="Give the machine or the service (systemd's AllowedCPUs) two cores or more.",
        )
    return Finding(check="cores", level="ok", title="Cores", detail=f"{machine.cores} cores")


def check_memory(machine: Machine, packs: tuple[Manifest, ...]) -> Finding:
    """Check that the installed models fit into memory."""

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="memory", level=level, title="Memory", detail=detail, remedy=remedy)

    needed = BASE_MEMORY + sum(manifest.memory_bytes for manifest in packs)
    limits = [size for size in (machine.memory_total, machine.memory_limit) if size is not None]
    if not limits:
        return finding(
            "warning",
            f"The size of the memory cannot be read; the installed packs need {gib(needed)}.",
            "Make sure that the machine has that much.",
        )
    if min(limits) < needed:
        where = "this machine has" if min(limits) == machine.memory_total else "the control group allows"
        return finding(
            "error",
            f"The installed packs need {gib(needed)}, {where} {gib(min(limits))}.",
            "Remove a pack (appliance pack remove NAME), or give the machine more memory.",
        )
    # While the service runs, the models it holds are no longer available: nothing to compare with.
    available = machine.memory_available
    if machine.port != "ours" and available is not None and available < needed:
        return finding(
            "warning",
            f"The installed packs need {gib(needed)}, {gib(available)} are available now.",
            "Stop other programs before the service starts.",
        )
    shown = "" if available is None else f", {gib(available)} available"
    return finding("ok", f"{gib(min(limits))}{shown}; the installed packs need {gib(needed)}")


def check_disk(machine: Machine) -> Finding:
    """Check that the stores can grow."""

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="disk", level=level, title="Disk", detail=detail, remedy=remedy)

    free = machine.disk_free
    if free is None:
        return finding(
            "warning",
            "The free space cannot be read.",
            "Check that the disk of the data directory is mounted.",
        )
    if free < LITTLE_DISK:
        return finding(
            "error",
            f"{free >> 20} MiB are free in the data directory: writes are about to fail.",
            "Free some space, or remove a pack.",
        )
    if free < ENOUGH_DISK:
        return finding(
            "warning", f"{gib(free)} are free in the data directory.", "Free some space before it runs out."
        )
    return finding("ok", f"{gib(free)} free in the data directory")


def _in_words(flags: tuple[str, ...]) -> str:
    names = [flag.upper() for flag in flags]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
