"""The machine as the checks see it: facts, each None where it cannot be known.

Reading /proc and /sys may be forbidden (systemd's ProcSubset=pid); then a system call is asked, and
else the fact is unknown.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Literal

import msgspec

from appliance.config import SECRET_CREDENTIAL, Settings
from appliance.engines.cores import usable_cores
from appliance.frozen import program_file
from appliance.storage.sqlite import library_version, sqlite

# Tells whether the service runs with this data directory; None when this user cannot see that.
ServiceRuns = Callable[[], bool | None]
PortState = Literal["free", "ours", "taken", "forbidden", "not here", "unknown"]
# Where systemd looks for the credentials that the unit names.
CREDENTIAL_STORES = (Path("/etc/credstore"), Path("/etc/credstore.encrypted"))
HOLDERS: dict[bool | None, PortState] = {True: "ours", False: "taken", None: "unknown"}


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory: its path, permission bits, owner and size in bytes."""

    path: Path
    mode: int
    owner: int
    size: int
    is_directory: bool


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The facts. Sizes are bytes, times seconds since the epoch."""

    architecture: str
    cpu_flags: frozenset[str] | None
    cores: int
    memory_total: int | None
    memory_available: int | None
    memory_limit: int | None
    glibc: tuple[int, ...] | None
    sqlite_version: tuple[int, ...]
    vector_extension: str | None
    full_text_search: bool
    open_files: int
    open_files_limit: int
    now: float
    built: float
    user: int
    data_dir: FileFacts | None
    data_dir_writable: bool
    data_files: tuple[FileFacts, ...]
    disk_free: int | None
    port: PortState
    # The secret where the settings name a place outside of the data; whether systemd holds one for the service.
    secret: FileFacts | None = None
    credential: bool = False


def examine_machine(settings: Settings, service_runs: ServiceRuns) -> Machine:
    """Gather the facts. Changes nothing on the machine; binds the service's port for an instant.

    ``service_runs`` is asked when the port is taken.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    total, available = memory()
    data_dir = facts(settings.data_dir)
    return Machine(
        architecture=platform.machine(),
        cpu_flags=cpu_flags(),
        cores=usable_cores(),
        memory_total=total,
        memory_available=available,
        memory_limit=memory_limit(),
        glibc=glibc_version(),
        sqlite_version=library_version(),
        vector_extension=vector_extension(),
        full_text_search=has_full_text_search(),
        open_files=soft,
        open_files_limit=hard,
        now=time.time(),
        built=built(),
        user=os.geteuid(),
        data_dir=data_dir,
        data_dir_writable=os.access(existing(settings.data_dir), os.W_OK | os.X_OK, effective_ids=True),
        data_files=data_files(settings.data_dir) if data_dir is not None else (),
        disk_free=disk_free(settings.data_dir),
        port=port_state(settings, service_runs),
        secret=None if settings.secret_file is None else facts(settings.secret_file),
        credential=any(facts(store / SECRET_CREDENTIAL) is not None for store in CREDENTIAL_STORES),
    )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return the processor's features as Linux names them; without /proc, those NumPy asked the CPU for."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(flags.split())
    try:
        features = import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        return None
    if "BMI2" not in features:  # older NumPy does not ask for all that matter here
        return None
    return frozenset("fma" if name == "FMA3" else name.lower() for name, has in features.items() if has)


def memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Return the machine's memory, and what of it a new program may take (None without /proc)."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemTotal"].split()[0]) << 10, int(fields["MemAvailable"].split()[0]) << 10
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def memory_limit(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the smallest memory.max of this process's control groups (version 2); None without one."""
    limits: list[int] = []
    with suppress(OSError, StopIteration):
        lines = membership.read_text().splitlines()
        group = next(line[3:] for line in lines if line.startswith("0::"))
        inner = root / group.lstrip("/")
        for directory in (inner, *inner.parents):
            if directory.is_relative_to(root):
                with suppress(OSError, ValueError):
                    limits.append(int((directory / "memory.max").read_text()))
    return min(limits, default=None)


def glibc_version() -> tuple[int, ...] | None:
    """Return the GNU C library's version; None on another C library."""
    with suppress(OSError, ValueError):
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        if name == "glibc":
            return tuple(int(part) for part in version.split("."))
    return None


def vector_extension() -> str | None:
    """Return the version of sqlite-vec when it really loads."""
    connection = sqlite.connect(":memory:")
    try:
        import sqlite_vec

        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        return str(connection.execute("SELECT vec_version()").fetchone()[0])
    except (ImportError, AttributeError, sqlite.Error):
        return None
    finally:
        connection.close()


def has_full_text_search() -> bool:
    """Tell whether SQLite was built with FTS5."""
    connection = sqlite.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
    except sqlite.Error:
        return False
    finally:
        connection.close()
    return True


def built() -> float:
    """Return when the program's files were written, which no right clock is before."""
    return program_file().stat().st_mtime


def facts(path: Path) -> FileFacts | None:
    """Return the facts of ``path`` itself (a link is not followed); None when it is not there."""
    try:
        status = path.lstat() if path.is_symlink() and not path.exists() else path.stat()
    except OSError:
        return None
    return FileFacts(
        path=path,
        mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid,
        size=status.st_size,
        is_directory=stat.S_ISDIR(status.st_mode),
    )


def data_files(directory: Path) -> tuple[FileFacts, ...]:
    """Return the facts of what lies directly in the data directory, and of the packs."""
    found: list[FileFacts] = []
    for folder in (directory, directory / "packs"):
        with suppress(OSError):
            found += [entry for path in sorted(folder.iterdir()) if (entry := facts(path)) is not None]
    return tuple(found)


def existing(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists."""
    for candidate in (path, *path.parents):
        with suppress(PermissionError):
            if candidate.exists():
                return candidate
    return Path("/")


def disk_free(directory: Path) -> int | None:
    """Return the free space where ``directory`` is or will be."""
    with suppress(OSError):
        status = os.statvfs(existing(directory))
        return status.f_bavail * status.f_frsize
    return None


def port_state(settings: Settings, service_runs: ServiceRuns) -> PortState:
    """Tell whether the service could listen now, or does already."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(1)
        except PermissionError:
            return "forbidden"
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return "not here"
            return HOLDERS[service_runs()]
    return "free"
