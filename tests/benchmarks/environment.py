"""The peers' own environment (``.venv-bench``), and what the report says of the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "bench.txt"
ENVIRONMENT = ROOT / ".venv-bench"
INSTALL_SECONDS = 900


def peer_python() -> Path:
    """Return the interpreter of the peers' environment, installed exactly as locked. Raises CalledProcessError."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"Installing {LOCK.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:"]
        subprocess.run([*install, "-r", str(LOCK)], check=True, timeout=INSTALL_SECONDS)
        stamp.write_text(wanted)
    return python


def machine() -> str:
    """Return this machine in general words: processor, cores, memory, system."""
    cpu, flags = _cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    wide = [
        words
        for flag, words in (
            ("amx_int8", "AMX"),
            ("avx512_vnni", "AVX-512 VNNI"),
            ("avx_vnni", "AVX VNNI"),
            ("avx512f", "AVX-512"),
            ("avx2", "AVX2"),
        )
        if flag in flags
    ]
    widest = f" ({', '.join(wide)})" if wide else ""
    return (
        f"{cpu}{widest}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def _cpu() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its feature flags."""
    name, flags = platform.processor() or "unknown processor", frozenset[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() == "flags":
            flags = frozenset(value.split())
    return name, flags
