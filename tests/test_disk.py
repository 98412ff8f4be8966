"""What an operator names may be anything: a pipe that nobody writes to, a device, another's folder."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.disk import read_beginning, taking_the_place_of, write_new, write_whole


def test_a_pipe_that_nobody_writes_to_is_refused_and_one_with_a_writer_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="nobody writes"):
        read_beginning(pipe, 100)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # as a shell's <(…)
        os.close(reading)
        os.write(writing, b"a password")
        os._exit(0)
    os.close(writing)
    assert read_beginning(Path(f"/dev/fd/{reading}"), 100) == b"a password"
    os.waitpid(child, 0)
    os.close(reading)
    assert read_beginning(Path("/dev/zero"), 100) == bytes(100)


def test_a_folder_in_the_place_of_a_file_is_named_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        read_beginning(tmp_path, 100)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_new_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "key", chunks(), 0o600)
    assert list(tmp_path.iterdir()) == []


def test_no_device_and_no_pipe_is_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match="no regular file"):
            write_whole(path, b"x", 0o600)
        with pytest.raises(OSError, match="no regular file"), taking_the_place_of(path) as file:
            file.write(b"x")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]
