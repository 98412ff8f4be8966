"""The store of installed packs: install, replace, list, verify, archive, remove."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance import disk
from appliance.packs import staging
from appliance.packs import store as store_module
from appliance.packs.errors import PackCancelledError, PackError, PackNotFoundError, PackSpaceError
from appliance.packs.lock import hold
from appliance.packs.manifest import PackFile
from appliance.packs.meter import Meter
from appliance.packs.store import PackStore, check_pack
from tests.packs.sample import contents, leftovers, names, snapshot, write_pack


@pytest.fixture
def packs(tmp_path: Path) -> PackStore:
    return PackStore(tmp_path / "data" / "packs")


def expected(directory: Path, name: str = "sample") -> dict[str, bytes]:
    return {f"{name}/{path}": data for path, data in snapshot(directory).items()}


def test_an_empty_store_lists_nothing_and_makes_nothing(packs: PackStore) -> None:
    packs.sweep()
    assert packs.list() == ()
    assert not packs.path.exists()
    with pytest.raises(PackNotFoundError):
        packs.get("sample")


def test_install_from_a_directory_then_archive_then_install_elsewhere(
    packs: PackStore, tmp_path: Path
) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    seen: list[tuple[int, int]] = []
    manifest = packs.install(source, lambda done, total: seen.append((done, total)))
    assert manifest.name == "sample"
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == sum(len(data) for data in snapshot(source).values())
    assert snapshot(packs.path) == expected(source)
    assert packs.directory("sample") == packs.path / "sample"
    assert packs.verify("sample") == manifest

    archive = tmp_path / "sample.tar.zst"
    packs.archive("sample", archive)
    again = tmp_path / "again.tar.zst"
    packs.archive("sample", again)
    assert archive.read_bytes() == again.read_bytes()
    assert check_pack(archive) == manifest
    elsewhere = PackStore(tmp_path / "elsewhere")
    assert elsewhere.install(archive) == manifest
    assert snapshot(elsewhere.path) == expected(source)
    assert names(tmp_path) == ["again.tar.zst", "data", "elsewhere", "sample.tar.zst", "source"]


@pytest.mark.parametrize("swappable", [True, False])
def test_a_new_version_replaces_the_old_one_whole(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swappable: bool
) -> None:
    if not swappable:

        def refuse(_one: Path, _other: Path) -> None:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(disk, "exchange", refuse)
    packs.install(write_pack(tmp_path / "one", {**contents(1), "extra.bin": b"only in the first"}))
    second = write_pack(tmp_path / "two", contents(2))
    packs.install(second)
    packs.install(second)
    assert snapshot(packs.path) == expected(second)
    assert leftovers(packs.path) == []


def test_a_broken_pack_is_listed_with_its_problem_and_can_be_replaced(
    packs: PackStore, tmp_path: Path
) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    packs.install(source)
    packs.install(write_pack(tmp_path / "other", contents(2), name="another"))
    (packs.path / "sample" / "model.onnx").write_bytes(b"short")
    another, sample = packs.list()
    assert (another.name, another.problem) == ("another", None)
    assert sample.manifest is None
    assert "model.onnx has 5 bytes instead of the 3000" in str(sample.problem)
    for use in (packs.directory, packs.verify):
        with pytest.raises(PackError, match="sample is broken"):
            use("sample")
    packs.install(source)
    assert packs.verify("sample").name == "sample"


def test_other_broken_packs_are_listed_too(packs: PackStore, tmp_path: Path) -> None:
    write_pack(packs.path / "renamed", contents(1))
    (packs.path / "empty").mkdir()
    write_pack(packs.path / "linked", contents(1), name="linked")
    (packs.path / "linked" / "labels.txt").unlink()
    (packs.path / "linked" / "labels.txt").symlink_to("/etc/hostname")
    problems = {pack.name: pack.problem for pack in packs.list()}
    assert problems["renamed"] == "pack.toml says that this is 'sample'"
    assert "cannot read" in str(problems["empty"])
    assert problems["linked"] == "labels.txt is not a regular file"
    for name in problems:
        packs.remove(name)
    assert packs.list() == ()


def test_verify_finds_one_changed_bit(packs: PackStore, tmp_path: Path) -> None:
    packs.install(write_pack(tmp_path / "source", contents(1)))
    packs.verify("sample", cached=True)
    model = packs.path / "sample" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[1234] ^= 1
    model.write_bytes(data)
    for cached in (False, True):
        with pytest.raises(PackError, match=r"pack sample: model.onnx is damaged"):
            packs.verify("sample", cached=cached)


def test_verify_finds_an_unlisted_file(packs: PackStore, tmp_path: Path) -> None:
    packs.install(write_pack(tmp_path / "source", contents(1)))
    (packs.path / "sample" / "text" / "custom_op.so").write_bytes(b"\x7fELF")
    with pytest.raises(PackError, match=r"text/custom_op.so' is not listed"):
        packs.verify("sample")


def test_the_hash_cache_skips_only_what_did_not_change(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs.install(write_pack(tmp_path / "source", contents(1)))
    packs.verify("sample")
    hashed: list[str] = []

    def checked(file: PackFile, chunks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
        hashed.append(file.path)
        return staging.checked(file, chunks, advance)

    monkeypatch.setattr(store_module, "checked", checked)
    packs.verify("sample", cached=True)
    assert hashed == []
    label = packs.path / "sample" / "labels.txt"
    label.write_bytes(label.read_bytes())
    packs.verify("sample", cached=True)
    assert hashed == ["labels.txt"]
    (packs.path / ".verified").write_bytes(b"\xff not json")
    packs.verify("sample", cached=True)
    assert sorted(hashed[1:]) == sorted(contents(1))


def test_is_current(packs: PackStore, tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    assert not packs.is_current(source)
    packs.install(source)
    assert packs.is_current(source)
    assert not packs.is_current(write_pack(tmp_path / "newer", contents(2)))
    (packs.path / "sample" / "labels.txt").unlink()
    assert not packs.is_current(source)
    assert not packs.is_current(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../packs", ".lock", "a/b", "Sample", "sample\n", "x" * 65, "a\0"]
)
def test_odd_names_name_nothing(packs: PackStore, tmp_path: Path, name: str) -> None:
    packs.install(write_pack(tmp_path / "source", contents(1)))
    for use in (packs.get, packs.directory, packs.verify, packs.remove):
        with pytest.raises(PackNotFoundError):
            use(name)


def test_directory_sources_are_checked_like_archives(packs: PackStore, tmp_path: Path) -> None:
    def refused(directory: Path, words: str) -> None:
        with pytest.raises(PackError, match=words):
            packs.install(directory)
        with pytest.raises(PackError, match=words):
            check_pack(directory)
        assert packs.list() == ()
        assert leftovers(packs.path) == []

    spoilt = write_pack(tmp_path / "spoilt", contents(1))
    (spoilt / "labels.txt").write_bytes(b"9")
    refused(spoilt, "labels.txt is damaged")
    longer = write_pack(tmp_path / "longer", contents(1))
    (longer / "labels.txt").write_bytes(b"12")
    refused(longer, "2 bytes instead of the 1")
    extra = write_pack(tmp_path / "extra", contents(1))
    (extra / "notes.md").write_bytes(b"x")
    refused(extra, "notes.md' is not listed")
    outside = write_pack(tmp_path / "outside", contents(1))
    (outside / "text").rename(tmp_path / "text")
    (outside / "text").symlink_to(tmp_path / "text")
    refused(outside, "'text' is not listed")
    pipe = write_pack(tmp_path / "pipe", contents(1))
    (pipe / "labels.txt").unlink()
    os.mkfifo(pipe / "labels.txt")
    refused(pipe, "labels.txt is not a regular file")
    refused(tmp_path / "text", "cannot read")


def test_without_room_nothing_is_written(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    monkeypatch.setattr(store_module, "free_bytes", lambda _: store_module.RESERVE_BYTES)
    with pytest.raises(PackSpaceError, match="256 MiB free") as caught:
        packs.install(source)
    assert caught.value.status == 507
    assert packs.list() == ()
    assert leftovers(packs.path) == []


def test_a_full_disk_in_the_middle_leaves_nothing(
    packs: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_pack(tmp_path / "old", contents(1))
    packs.install(old)
    real = os.fsync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PackSpaceError, match="No space left on device"):
        packs.install(write_pack(tmp_path / "new", contents(2)))
    assert snapshot(packs.path) == expected(old)
    assert leftovers(packs.path) == []


def test_cancelling_leaves_the_old_pack(packs: PackStore, tmp_path: Path) -> None:
    old = write_pack(tmp_path / "old", contents(1))
    packs.install(old)
    new = write_pack(tmp_path / "new", contents(2))
    progress: list[int] = []
    with pytest.raises(PackCancelledError):
        packs.install(new, lambda done, _: progress.append(done), lambda: len(progress) > 2)
    assert snapshot(packs.path) == expected(old)
    assert leftovers(packs.path) == []


def test_installations_at_once_take_turns(packs: PackStore, tmp_path: Path) -> None:
    sources = [write_pack(tmp_path / f"source{seed}", contents(seed, 20_000)) for seed in range(4)]
    busy = threading.Lock()

    def progress(done: int, total: int) -> None:
        # Held from the first to the last byte: two installations in the middle at once would find it taken.
        if done == 0:
            assert busy.acquire(blocking=False)
        elif done == total:
            busy.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: packs.install(sources[number % 4], progress), range(16)))
    assert snapshot(packs.path) in [expected(source) for source in sources]
    assert leftovers(packs.path) == []


def test_a_waiting_installation_can_be_cancelled(packs: PackStore, tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    packs.path.mkdir(parents=True)
    with hold(packs.path / ".lock", Meter()), pytest.raises(PackCancelledError):
        packs.install(source, cancelled=lambda: True)
    packs.install(source)


def test_a_sweep_leaves_a_running_change_alone(packs: PackStore) -> None:
    staging = packs.path / ".staging-0123"
    staging.mkdir(parents=True)
    with hold(packs.path / ".lock", Meter()):
        packs.sweep()
    assert staging.exists()
    packs.sweep()
    assert not staging.exists()


def test_archiving_a_damaged_pack_writes_no_archive(packs: PackStore, tmp_path: Path) -> None:
    packs.install(write_pack(tmp_path / "source", contents(1)))
    (packs.path / "sample" / "labels.txt").write_bytes(b"9")
    with pytest.raises(PackError, match="damaged"):
        packs.archive("sample", tmp_path / "out" / "sample.tar.zst")
    (tmp_path / "out").mkdir()
    with pytest.raises(PackError, match="damaged"):
        packs.archive("sample", tmp_path / "out" / "sample.tar.zst")
    assert names(tmp_path / "out") == []
