"""The facts of the machine that runs the tests, and where they cannot be read."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.doctor import service_runs
from appliance.config import Settings
from appliance.doctor import machine
from appliance.doctor.machine import examine_machine, port_state


def settings_at(tmp_path: Path, port: int) -> Settings:
    return Settings(data_dir=tmp_path, host="127.0.0.1", port=port)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    listening = socket.create_server(("127.0.0.1", 0))
    yield listening
    listening.close()


def test_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(bytes(32))
    facts = examine_machine(settings_at(tmp_path, 1), lambda: None)
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.memory_total is not None
    assert facts.sqlite_version >= (3, 51, 3)
    assert facts.vector_extension is not None
    assert facts.full_text_search
    assert facts.built < facts.now
    assert facts.data_dir is not None
    assert facts.data_dir.is_directory
    assert [file.path.name for file in facts.data_files] == ["secret.key"]


def test_a_data_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    facts = examine_machine(settings_at(tmp_path / "not" / "yet", 1), lambda: None)
    assert facts.data_dir is None
    assert facts.data_dir_writable
    assert facts.disk_free is not None
    assert not (tmp_path / "not").exists()


def test_proc_is_forbidden(tmp_path: Path) -> None:
    flags = machine.cpu_flags(tmp_path / "cpuinfo")
    assert flags is None or ("avx2" in flags) == ("avx2" in (machine.cpu_flags() or ()))
    total, available = machine.memory(tmp_path / "meminfo")
    assert total is not None
    assert available is None
    assert machine.memory_limit(tmp_path / "cgroup", tmp_path) is None


def test_proc_says_nonsense(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: lots\n")
    assert machine.memory(tmp_path / "meminfo")[1] is None
    (tmp_path / "cpuinfo").write_text("model name : A\nflags : fpu avx2\nprocessor : 1\n")
    assert machine.cpu_flags(tmp_path / "cpuinfo") == frozenset({"fpu", "avx2"})


def test_the_smallest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/system.slice/appliance.service\n")
    service = tmp_path / "root" / "system.slice" / "appliance.service"
    service.mkdir(parents=True)
    (service / "memory.max").write_text("max\n")
    assert machine.memory_limit(tmp_path / "membership", tmp_path / "root") is None
    (service.parent / "memory.max").write_text("1000\n")
    (service / "memory.max").write_text("2000\n")
    assert machine.memory_limit(tmp_path / "membership", tmp_path / "root") == 1000


@pytest.mark.parametrize(("runs", "state"), [(True, "ours"), (False, "taken"), (None, "unknown")])
def test_a_taken_port_and_a_free_one(
    tmp_path: Path, listener: socket.socket, runs: bool | None, state: str
) -> None:
    port = listener.getsockname()[1]
    assert port_state(settings_at(tmp_path, port), lambda: runs) == state
    listener.close()
    assert port_state(settings_at(tmp_path, port), lambda: runs) == "free"


async def test_whether_the_service_runs(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, 1)
    assert service_runs(settings) is False
    hung_up = asyncio.Event()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_unix_server(hang_up, settings.control_path)
    assert await asyncio.to_thread(service_runs, settings) is True
    await hung_up.wait()
    server.close()
    await server.wait_closed()
    assert service_runs(settings) is False


def test_a_foreign_address(tmp_path: Path) -> None:
    assert port_state(Settings(data_dir=tmp_path, host="192.0.2.1", port=8080), lambda: None) == "not here"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may listen everywhere")
def test_a_privileged_port(tmp_path: Path) -> None:
    assert port_state(settings_at(tmp_path, 80), lambda: None) in ("forbidden", "free")
