"""The doctor on a machine that is well, and on machines with one thing wrong each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.config import Settings
from appliance.doctor.examination import examine
from appliance.doctor.findings import Finding
from appliance.doctor.machine import FileFacts, Machine, examine_machine
from appliance.packs.store import PackStore
from tests.packs.sample import contents, write_pack

WELL = Machine(
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "bmi2", "f16c", "fma", "sse4_2"}),
    cores=2,
    memory_total=8 << 30,
    memory_available=6 << 30,
    memory_limit=None,
    glibc=(2, 36),
    sqlite_version=(3, 53, 4),
    vector_extension="v0.1.9",
    full_text_search=True,
    open_files=4096,
    open_files_limit=4096,
    now=1_800_000_000.0,
    built=1_799_000_000.0,
    user=990,
    data_dir=None,
    data_dir_writable=True,
    data_files=(),
    disk_free=50 << 30,
    port="free",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path / "data")
    PackStore(settings.packs_dir).install(
        write_pack(tmp_path / "source", contents(1), memory_bytes=str(1 << 30))
    )
    return settings


def entry(path: Path, mode: int = 0o600, owner: int = 990, size: int = 32) -> FileFacts:
    return FileFacts(path=path, mode=mode, owner=owner, size=size, is_directory=False)


def directory(path: Path, mode: int = 0o700, owner: int = 990) -> FileFacts:
    return FileFacts(path=path, mode=mode, owner=owner, size=4096, is_directory=True)


def found(settings: Settings, check: str, **changes: Any) -> Finding:
    """Return what one check finds on the well machine with ``changes``; the other checks stay as they were."""
    findings = examine(settings, msgspec.structs.replace(WELL, **changes))
    for finding in findings:
        assert bool(finding.remedy) == (finding.level != "ok"), finding
    return next(finding for finding in findings if finding.check == check)


def test_a_well_machine_has_nothing_to_find(settings: Settings) -> None:
    findings = examine(settings, WELL, verify=True)
    assert {finding.level for finding in findings} == {"ok"}
    assert len({finding.check for finding in findings}) == len(findings) == 13


@pytest.mark.parametrize(
    ("check", "level", "words", "changes"),
    [
        ("cpu", "error", "lacks AVX2 and FMA", {"cpu_flags": frozenset({"bmi2", "f16c"})}),
        ("cpu", "warning", "cannot be read", {"cpu_flags": None}),
        ("cpu", "error", "not a supported architecture", {"architecture": "riscv64"}),
        ("cpu", "ok", "aarch64", {"architecture": "aarch64", "cpu_flags": None}),
        ("cores", "warning", "Only one core", {"cores": 1}),
        ("memory", "error", "need 1.3 GiB, this machine has 1.0 GiB", {"memory_total": 1 << 30}),
        ("memory", "error", "need 1.3 GiB, the control group allows 0.5 GiB", {"memory_limit": 1 << 29}),
        ("memory", "warning", "1.0 GiB are available", {"memory_available": 1 << 30}),
        ("memory", "ok", "8.0 GiB", {"memory_available": 1 << 30, "port": "ours"}),
        ("memory", "ok", "8.0 GiB; the", {"memory_available": None}),
        ("memory", "warning", "cannot be read", {"memory_available": None, "memory_total": None}),
        ("disk", "error", "100 MiB are free", {"disk_free": 100 << 20}),
        ("disk", "warning", "1.0 GiB are free", {"disk_free": 1 << 30}),
        ("disk", "warning", "cannot be read", {"disk_free": None}),
        ("libc", "error", "glibc 2.27; glibc 2.28 or newer", {"glibc": (2, 27)}),
        ("libc", "error", "another C library", {"glibc": None}),
        ("sqlite", "error", "SQLite 3.51.2 may lose", {"sqlite_version": (3, 51, 2)}),
        ("sqlite", "error", "SQLite 3.40.1 may lose", {"sqlite_version": (3, 40, 1)}),
        ("sqlite", "ok", "3.51.3", {"sqlite_version": (3, 51, 3)}),
        ("sqlite", "ok", "3.44.6", {"sqlite_version": (3, 44, 6)}),
        ("sqlite", "ok", "3.50.7", {"sqlite_version": (3, 50, 7)}),
        ("sqlite", "error", "sqlite-vec", {"vector_extension": None}),
        ("sqlite", "error", "FTS5", {"full_text_search": False}),
        ("clock", "error", "The clock says 1970-01-01", {"now": 0.0}),
        ("clock", "error", "files are from 2027-01", {"now": 1_799_000_000.0 - 200_000}),
        ("clock", "ok", "UTC", {"now": 1_799_000_000.0 - 3600}),
        ("open-files", "warning", "At most 512", {"open_files": 512}),
        ("open-files", "error", "At most 128", {"open_files": 128}),
        ("open-files", "ok", "no limit", {"open_files": -1}),
        ("data-dir", "error", "may not be made", {"data_dir_writable": False}),
        ("port", "error", "Another program listens", {"port": "taken"}),
        ("port", "error", "may not listen", {"port": "forbidden"}),
        ("port", "error", "no address of this machine", {"port": "not here"}),
        ("port", "warning", "cannot be seen", {"port": "unknown"}),
        ("port", "ok", "the service listens on port 8080", {"port": "ours"}),
    ],
)
def test_one_thing_wrong(
    settings: Settings, check: str, level: str, words: str, changes: dict[str, Any]
) -> None:
    finding = found(settings, check, **changes)
    assert finding.level == level
    assert words in finding.detail


def test_the_data_directory(settings: Settings) -> None:
    path = settings.data_dir

    def look(facts: FileFacts, **changes: Any) -> Finding:
        return found(settings, "data-dir", data_dir=facts, **changes)

    assert look(directory(path)).level == "ok"
    assert look(directory(path), user=0).level == "ok"
    assert "belongs to user 991" in look(directory(path, owner=991)).detail
    assert "not a directory" in look(entry(path)).detail
    assert "not writable" in look(directory(path), data_dir_writable=False).detail
    stranger = look(directory(path), data_files=(entry(path / "appliance.db", owner=0),), user=0)
    assert (stranger.level, stranger.remedy) == ("error", f"chown -R --reference={path} {path}")
    assert "appliance.db in" in stranger.detail
    open_to_all = look(directory(path, mode=0o755))
    assert (open_to_all.level, open_to_all.remedy) == ("warning", f"chmod o-rwx {path}")


def test_the_secret(settings: Settings) -> None:
    def look(*files: FileFacts) -> Finding:
        return found(settings, "secret", data_dir=directory(settings.data_dir), data_files=files)

    store = entry(settings.database_path)
    assert look().level == "ok"
    assert look(store, entry(settings.secret_path)).level == "ok"
    assert "is gone" in look(store).detail
    assert look(entry(settings.secret_path, mode=0o640)).remedy == f"chmod 600 {settings.secret_path}"
    assert "12 bytes" in look(entry(settings.secret_path, size=12)).detail


def test_a_secret_outside_of_the_data(settings: Settings, tmp_path: Path) -> None:
    store, place = entry(settings.database_path), tmp_path / "etc" / "appliance.secret"
    outside = msgspec.structs.replace(settings, secret_file=place)

    def look(settings: Settings, **changes: Any) -> Finding:
        data_dir = directory(settings.data_dir)
        return found(settings, "secret", data_dir=data_dir, data_files=(store,), **changes)

    assert look(outside, secret=entry(place)).level == "ok"
    assert "can be read by others" in look(outside, secret=entry(place, mode=0o644)).detail
    assert "is gone" in look(outside).detail
    # systemd gives it to the service alone.
    handed = look(settings, credential=True)
    assert (handed.level, "credential" in handed.detail) == ("ok", True)


def test_the_secret_is_looked_for_where_the_settings_say(tmp_path: Path) -> None:
    place = tmp_path / "appliance.secret"
    settings = Settings(data_dir=tmp_path / "data", secret_file=place)
    assert examine_machine(settings, lambda: None).secret is None
    place.write_bytes(bytes(32))
    examined = examine_machine(settings, lambda: None).secret
    assert examined is not None
    assert (examined.path, examined.size) == (place, 32)


def same_size(model: Path) -> None:
    model.write_bytes(bytes(model.stat().st_size))


@pytest.mark.parametrize(
    ("spoil", "verify", "words"),
    [
        (Path.unlink, False, "model.onnx is missing"),
        (lambda model: model.write_bytes(b"x"), False, "1 bytes instead of"),
        (same_size, True, "model.onnx is damaged"),
    ],
)
def test_a_broken_pack(settings: Settings, spoil: Callable[[Path], None], verify: bool, words: str) -> None:
    spoil(settings.packs_dir / "sample" / "model.onnx")
    finding = examine(settings, WELL, verify=verify)[-1]
    assert (finding.check, finding.level) == ("pack:sample", "error")
    assert words in finding.detail
    assert "appliance pack remove" in finding.remedy


def test_no_packs(tmp_path: Path) -> None:
    finding = examine(Settings(data_dir=tmp_path / "empty"), WELL)[-1]
    assert (finding.check, finding.level) == ("packs", "warning")
    assert not (tmp_path / "empty").exists()
