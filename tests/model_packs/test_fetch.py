"""Fetching: nothing with another hash is ever kept, wherever it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_packs.errors import SourceError
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource
from tests.model_packs.sample import PAYLOAD, WHEEL, sdist, sha256, wheel

CONTENT = wheel({"sample_weights/model.bin": PAYLOAD})


def source(content: bytes = CONTENT, filename: str = WHEEL) -> PackageSource:
    return PackageSource(
        package="sample-weights",
        version="1.0",
        filename=filename,
        sha256=sha256(content),
        license="CC0-1.0",
        members={"model.bin": "sample_weights/model.bin"},
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip is told to look in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("APPLIANCE_SOURCES_DIR", raising=False)
    return folder


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_wheel_comes_from_where_pip_looks(index: Path, tmp_path: Path) -> None:
    (index / WHEEL).write_bytes(CONTENT)
    path = fetch_package(source(), tmp_path / "cache")
    assert path == tmp_path / "cache" / sha256(CONTENT) / WHEEL
    assert path.read_bytes() == CONTENT
    assert kept(tmp_path / "cache") == [path]


def test_source_archive_is_not_built(index: Path, tmp_path: Path) -> None:
    content = sdist(
        {"sample_weights-1.0/setup.py": b"raise SystemExit('never run')", "sample_weights-1.0/a": PAYLOAD}
    )
    (index / "sample_weights-1.0.tar.gz").write_bytes(content)
    path = fetch_package(source(content, "sample_weights-1.0.tar.gz"), tmp_path / "cache")
    assert path.read_bytes() == content


def test_wrong_hash_is_refused_and_nothing_kept(index: Path, tmp_path: Path) -> None:
    (index / WHEEL).write_bytes(CONTENT + b" ")
    with pytest.raises(
        SourceError, match=r"wrong SHA-256, refused: the recipe pins .* has " + sha256(CONTENT + b" ")
    ):
        fetch_package(source(), tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_what_no_index_has_is_an_error_that_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot fetch .*no index.*APPLIANCE_SOURCES_DIR"):
        fetch_package(source(), tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_cached_file_needs_no_index(index: Path, tmp_path: Path) -> None:
    (index / WHEEL).write_bytes(CONTENT)
    path = fetch_package(source(), tmp_path / "cache")
    (index / WHEEL).unlink()
    assert fetch_package(source(), tmp_path / "cache") == path


def test_damaged_cached_file_is_fetched_again(index: Path, tmp_path: Path) -> None:
    (index / WHEEL).write_bytes(CONTENT)
    path = fetch_package(source(), tmp_path / "cache")
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch_package(source(), tmp_path / "cache").read_bytes() == CONTENT


def test_sources_folder_comes_first(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    monkeypatch.setenv("APPLIANCE_SOURCES_DIR", str(folder))
    (folder / WHEEL).write_bytes(CONTENT)
    assert fetch_package(source(), tmp_path / "cache").read_bytes() == CONTENT
    (folder / WHEEL).write_bytes(b"something else")
    with pytest.raises(SourceError, match="wrong SHA-256"):
        fetch_package(source(), tmp_path / "other cache")
