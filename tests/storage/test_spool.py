"""Uploads have no name, leave the reserve on the disk, and say so when it is full."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from appliance.storage.errors import StoreFullError
from appliance.storage.spool import RESERVED_BYTES, Spool, Upload


def spool_with(tmp_path: Path, room: int) -> Spool:
    """Return a spool on a disk whose free space shrinks by nothing: only promises count."""
    return Spool(tmp_path / "spool", free=lambda _: RESERVED_BYTES + room)


def test_an_upload_is_read_back_from_its_start_and_has_no_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with spool.upload() as upload:
        upload.write(b"one ")
        upload.write(b"two")
        kept = os.dup(upload.descriptor())
        assert upload.size == 7
        assert list(spool.directory.iterdir()) == []
    with os.fdopen(kept, "rb") as file:
        assert file.read() == b"one two"


def test_opening_removes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / "spool" / "folder").mkdir(parents=True)
    (tmp_path / "spool" / "folder" / "file").write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"x")
    (tmp_path / "spool" / "link").symlink_to(tmp_path / "outside")

    assert list(Spool(tmp_path / "spool").directory.iterdir()) == []
    assert (tmp_path / "outside" / "kept").exists()


def test_what_cannot_be_removed_keeps_no_service_from_starting(tmp_path: Path) -> None:
    (tmp_path / "spool" / "folder").mkdir(parents=True)
    (tmp_path / "spool" / "folder" / "file").write_bytes(b"x")
    with mock.patch("os.unlink", side_effect=PermissionError):
        spool = Spool(tmp_path / "spool")

    with spool.upload() as upload:
        upload.write(b"x")
        assert upload.size == 1


def test_the_reserve_stays_free(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, 100)
    spool.check_room(100)
    with pytest.raises(StoreFullError):
        spool.check_room(101)
    with spool.upload() as upload:
        upload.write(b"x" * 100)
        with pytest.raises(StoreFullError) as full:
            upload.write(b"x" * 101)
        assert upload.size == 100
    assert full.value.status == 503
    assert full.value.retry_after


def test_writes_under_way_count_against_each_other(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, 100)
    with spool.promise(60):
        with pytest.raises(StoreFullError), spool.promise(41):
            pass
        with pytest.raises(StoreFullError):
            spool.check_room(41)
        with spool.promise(40):
            pass
    with pytest.raises(KeyError), spool.promise(100):
        raise KeyError
    spool.check_room(100)


def test_parallel_uploads_never_pass_the_reserve(tmp_path: Path) -> None:
    room = 1 << 20
    uploads: list[Upload] = []

    def free(_: Path) -> int:
        return RESERVED_BYTES + room - sum(upload.size for upload in uploads)

    spool = Spool(tmp_path / "spool", free)
    uploads.extend(spool.upload() for _ in range(8))

    def fill(upload: Upload) -> None:
        while True:
            upload.write(b"x" * 10_000)

    with ThreadPoolExecutor(8) as threads:
        for filled in [threads.submit(fill, upload) for upload in uploads]:
            with pytest.raises(StoreFullError):
                filled.result()

    assert sum(upload.size for upload in uploads) <= room
    for upload in uploads:
        upload.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_is_a_full_store(tmp_path: Path, number: int) -> None:
    spool = Spool(tmp_path / "spool")
    with pytest.raises(StoreFullError), spool.promise(1):
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="Input/output error"), spool.promise(1):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_write_to_a_full_device_is_a_full_store(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool").upload() as upload:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, upload.descriptor())
        os.close(full)
        with pytest.raises(StoreFullError):
            upload.write(b"x")


def test_a_closed_upload_takes_no_more(tmp_path: Path) -> None:
    spool = spool_with(tmp_path, 100)
    upload = spool.upload()
    upload.close()
    with pytest.raises(ValueError, match="closed"):
        upload.write(b"x" * 50)
    spool.check_room(100)
