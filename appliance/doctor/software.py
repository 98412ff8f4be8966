"""Checks of what the service runs on: libraries, limits, clock."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.doctor.findings import Finding
from appliance.doctor.machine import Machine
from appliance.storage.sqlite import has_wal_reset_fault

# The wheels of the inference libraries are built for manylinux_2_28.
OLDEST_GLIBC = (2, 28)

FEW_FILES = 256
ENOUGH_FILES = 1024

# The day before which no clock of a box with this program can rightly be.
EARLIEST = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
DAY_SECONDS = 86_400


def check_libc(machine: Machine) -> Finding:
    """Check that the C library is one the inference libraries were built for."""
    found = "another C library" if machine.glibc is None else f"glibc {_dotted(machine.glibc)}"
    if machine.glibc is None or machine.glibc < OLDEST_GLIBC:
        return Finding(
            check="libc",
            level="error",
            title="C library",
            detail=f"This system has {found}; glibc {_dotted(OLDEST_GLIBC)} or newer is needed.",
            remedy="Use Debian 11, Ubuntu 20.04, RHEL 8 or newer.",
        )
    return Finding(check="libc", level="ok", title="C library", detail=found)


def check_sqlite(machine: Machine) -> Finding:
    """Check that SQLite keeps what it was given, and can search."""
    version = _dotted(machine.sqlite_version)
    reinstall = "Reinstall with the locked requirements, which bring their own SQLite (pysqlite3)."

    def error(detail: str) -> Finding:
        return Finding(check="sqlite", level="error", title="SQLite", detail=detail, remedy=reinstall)

    if has_wal_reset_fault(machine.sqlite_version):
        return error(f"SQLite {version} may lose committed data when a checkpoint meets a commit.")
    if machine.vector_extension is None:
        return error("The vector extension (sqlite-vec) does not load: searching collections would fail.")
    if not machine.full_text_search:
        return error("SQLite lacks full-text search (FTS5): searching collections would fail.")
    return Finding(
        check="sqlite",
        level="ok",
        title="SQLite",
        detail=f"SQLite {version} with sqlite-vec {machine.vector_extension} and FTS5",
    )


def check_clock(machine: Machine) -> Finding:
    """Check that the clock is not plainly wrong: keys and limits expire by it."""
    shown = f"{datetime.fromtimestamp(machine.now, UTC):%Y-%m-%d %H:%M} UTC"
    # A day of grace: files are copied between machines whose clocks differ.
    since = max(EARLIEST, machine.built - DAY_SECONDS)
    if machine.now < since:
        return Finding(
            check="clock",
            level="error",
            title="Clock",
            detail=f"The clock says {shown}; this program's files are from "
            f"{datetime.fromtimestamp(max(EARLIEST, machine.built), UTC):%Y-%m-%d}. "
            "Expiry dates and limits would be wrong.",
            remedy="Set the clock (timedatectl set-time), and replace the board's battery if it forgets the time.",
        )
    return Finding(check="clock", level="ok", title="Clock", detail=shown)


def check_open_files(machine: Machine) -> Finding:
    """Check that enough connections and files can be open at once."""
    limit = machine.open_files
    # -1 is "no limit".
    if 0 <= limit < ENOUGH_FILES:
        return Finding(
            check="open-files",
            level="error" if limit < FEW_FILES else "warning",
            title="Open files",
            detail=f"At most {limit} files and connections may be open at once.",
            remedy=f"Raise the limit to {ENOUGH_FILES} or more (ulimit -n, LimitNOFILE= in the unit).",
        )
    return Finding(
        check="open-files",
        level="ok",
        title="Open files",
        detail="no limit" if limit < 0 else f"up to {limit} at once",
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
