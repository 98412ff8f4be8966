"""Archives made to do harm: each is refused with words, and the store stays as it was."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from appliance.packs.errors import PackError
from appliance.packs.manifest import MANIFEST_NAME
from appliance.packs.store import PackStore, check_pack
from appliance.packs.tar import END
from tests.packs.sample import (
    FILES,
    compress,
    contents,
    leftovers,
    manifest_text,
    member,
    snapshot,
    tar_of,
    write_pack,
)

MANIFEST = manifest_text(FILES)
FIRST = member(MANIFEST_NAME, MANIFEST)
REST = b"".join(member(path, data) for path, data in FILES.items())


def refuse(tmp_path: Path, archive: bytes, words: str) -> None:
    """Try to install ``archive`` over a good pack; it must be refused with ``words`` and change nothing."""
    store = PackStore(tmp_path / "packs")
    store.install(write_pack(tmp_path / "good", contents(1)))
    before = snapshot(store.path)
    path = tmp_path / "evil.tar.zst"
    path.write_bytes(archive)
    for attempt in (store.install, check_pack):
        with pytest.raises(PackError, match=words):
            attempt(path)
    assert snapshot(store.path) == before
    assert leftovers(store.path) == []
    assert not (tmp_path / "escaped").exists()


def entry(kind: bytes, name: str = "labels.txt", link: str = "") -> bytes:
    """Return a tar member of another kind, as the standard library writes it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.DIRTYPE, "directory"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (tarfile.GNUTYPE_LONGNAME, "long name"),
        (tarfile.XHDTYPE, "PAX header"),
        (tarfile.XGLTYPE, "PAX global"),
    ],
)
def test_only_plain_files_pass(tmp_path: Path, kind: bytes, words: str) -> None:
    refuse(tmp_path, compress(FIRST + entry(kind, link="/etc/passwd") + REST + END), words)


@pytest.mark.parametrize("name", ["/etc/passwd", "../escaped", "text/../../escaped", "..", "text/.."])
def test_a_name_that_leaves_the_pack_is_refused(tmp_path: Path, name: str) -> None:
    refuse(tmp_path, compress(FIRST + member(name, b"x") + REST + END), "leaves the pack")


@pytest.mark.parametrize(
    "name", ["../escaped", "/escaped", "a/../b", ".hidden", "a//b", "a\\\\b", "a\\n", ""]
)
def test_a_manifest_cannot_list_such_a_name(tmp_path: Path, name: str) -> None:
    text = MANIFEST.replace(b'"labels.txt"', b'"%s"' % name.encode())
    refuse(tmp_path, compress(member(MANIFEST_NAME, text) + REST + END), "not valid")


def test_a_file_twice_is_refused(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        compress(FIRST + member("labels.txt", FILES["labels.txt"]) + REST + END),
        "twice, or one that",
    )


def test_a_second_manifest_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, compress(FIRST + FIRST + REST + END), "twice, or one that")


def test_an_unlisted_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, compress(FIRST + member("more.bin", b"x") + REST + END), "does not list: 'more.bin'")
    refuse(tmp_path, compress(FIRST + REST + member("more.bin", b"x") + END), "more than its pack.toml lists")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, compress(FIRST + member("labels.txt", FILES["labels.txt"]) + END), "lacks model.onnx")


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, compress(FIRST + member("labels.txt", b"cat") + END), "3 bytes instead of the 8")


def test_a_file_of_other_contents_is_refused(tmp_path: Path) -> None:
    spoilt = REST.replace(b"cat", b"cow")
    refuse(tmp_path, compress(FIRST + spoilt + END), "labels.txt is damaged")


def test_the_manifest_comes_first(tmp_path: Path) -> None:
    refuse(tmp_path, compress(REST + FIRST + END), "its first file is not pack.toml")
    refuse(tmp_path, compress(END), "its first file is not pack.toml")


def test_a_huge_manifest_is_refused_unread(tmp_path: Path) -> None:
    refuse(tmp_path, compress(member(MANIFEST_NAME, bytes(1 << 20)) + REST + END), "pack.toml is larger")


def test_a_manifest_that_takes_forever_to_parse_is_refused(tmp_path: Path) -> None:
    dots = b"a." * 60_000 + b"a = 1\n"
    refuse(tmp_path, compress(member(MANIFEST_NAME, dots) + END), "a line of more than")


def test_more_data_than_listed_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(tar_of(FILES) + bytes(256 << 20))
    assert len(bomb) < 100_000
    refuse(tmp_path, bomb, "more than its pack.toml lists")


def test_padding_is_zeros(tmp_path: Path) -> None:
    padded = FIRST + REST.replace(b"dog\n\0", b"dog\n!")
    refuse(tmp_path, compress(padded + END), "something else than zeros")


def test_the_end_mark_is_needed_and_is_the_end(tmp_path: Path) -> None:
    refuse(tmp_path, compress(FIRST + REST), "no end mark")
    refuse(tmp_path, compress(FIRST + REST + END[:512]), "no end mark")
    refuse(tmp_path, compress(FIRST + REST + END + b"x"), "more than its pack.toml lists")


@pytest.mark.parametrize("behind", [b"x", b"\0", compress(b"x"), b"\x50\x2a\x4d\x18\x01\0\0\0x"])
def test_nothing_may_follow_the_frame(tmp_path: Path, behind: bytes) -> None:
    refuse(tmp_path, compress(tar_of(FILES)) + behind, "behind its end")


def test_a_window_over_the_cap_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_checksum=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    refuse(tmp_path, compressor.compress(tar_of(FILES)) + compressor.flush(), "window of 128 MiB")


def test_a_frame_without_checksum_is_refused(tmp_path: Path) -> None:
    bare = zstandard.ZstdCompressor(write_checksum=False).compress(tar_of(FILES))
    refuse(tmp_path, bare, "no checksum")


def _tarred(layout: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as tar:
        for path, data in {MANIFEST_NAME: MANIFEST, **FILES}.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_other_programs_ustar_is_welcome_and_other_formats_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "by-hand.tar.zst"
    path.write_bytes(compress(_tarred(tarfile.USTAR_FORMAT)))
    assert PackStore(tmp_path / "elsewhere").install(path).name == "sample"
    refuse(tmp_path, compress(_tarred(tarfile.GNU_FORMAT)), "--format=ustar")


@pytest.mark.parametrize(
    "bytes_", [b"", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xff", os.urandom(64)]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, bytes_: bytes) -> None:
    refuse(tmp_path, bytes_, "not a pack|damaged|window|checksum")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd.tar.zst")
    with pytest.raises(PackError, match="not a regular file"):
        PackStore(tmp_path / "packs").install(tmp_path / "odd.tar.zst")


def test_an_absent_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="No such file"):
        PackStore(tmp_path / "packs").install(tmp_path / "absent.tar.zst")
