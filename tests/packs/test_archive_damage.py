"""Archives damaged anywhere: refused, or (where the damaged bit means nothing) installed exactly as written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.packs.errors import PackError
from appliance.packs.manifest import MANIFEST_NAME
from appliance.packs.store import PackStore, check_pack
from tests.packs.sample import FILES, compress, contents, manifest_text, names, snapshot, tar_of, write_pack

OLD = contents(1, 600)
OLD_MANIFEST = manifest_text(OLD)
ARCHIVE = compress(tar_of(FILES))
NEW = {f"sample/{path}": data for path, data in {MANIFEST_NAME: manifest_text(FILES), **FILES}.items()}

edits = st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(1, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PackStore:
    return PackStore(tmp_path_factory.mktemp("damage") / "packs")


def install(store: PackStore, damaged: bytes) -> bool:
    """Install over another pack; return whether it was accepted. The store holds the old or exactly the new."""
    old = {f"sample/{path}": data for path, data in {MANIFEST_NAME: OLD_MANIFEST, **OLD}.items()}
    if not store.list() or snapshot(store.path) != old:
        store.install(write_pack(store.path.parent / "old", OLD))
    path = store.path.parent / "damaged.tar.zst"
    path.write_bytes(damaged)
    try:
        store.install(path)
    except PackError:
        assert snapshot(store.path) == old
        assert names(store.path) == [".lock", "sample"]
        return False
    # Some bits of a Zstandard frame mean nothing for its contents: an unused flag, a larger window, the
    # code lengths of symbols that do not occur. A signature over the archive's bytes covers them.
    assert snapshot(store.path) == NEW
    return True


def test_the_undamaged_archive_installs(store: PackStore) -> None:
    assert install(store, ARCHIVE)


@settings(max_examples=100, deadline=None)
@given(edits)
@example([(4, 0x10)])
@example([(len(ARCHIVE) - 1, 1)])
def test_changed_bytes_never_install_something_else(store: PackStore, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(ARCHIVE)
    for position, mask in changes:
        damaged[position] ^= mask
    install(store, bytes(damaged))


def test_no_single_changed_byte_installs_something_else(store: PackStore, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tar.zst"
    accepted = 0
    for position in range(len(ARCHIVE)):
        damaged = bytearray(ARCHIVE)
        damaged[position] ^= 0x5A
        path.write_bytes(damaged)
        try:
            check_pack(path)
        except PackError:
            continue
        accepted += 1
        assert install(store, bytes(damaged))
    assert accepted < len(ARCHIVE) // 100


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(ARCHIVE) - 1))
@example(len(ARCHIVE) - 1)
@example(len(ARCHIVE) - 4)
def test_a_truncated_archive_is_refused(store: PackStore, length: int) -> None:
    assert not install(store, ARCHIVE[:length])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(ARCHIVE)), st.binary(min_size=1, max_size=40))
@example(len(ARCHIVE), b"\0")
def test_inserted_bytes_are_refused(store: PackStore, position: int, inserted: bytes) -> None:
    assert not install(store, ARCHIVE[:position] + inserted + ARCHIVE[position:]) or position < len(ARCHIVE)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 20 * 512), st.integers(1, 255))
def test_a_changed_byte_of_the_tar_stream_never_installs_something_else(
    store: PackStore, position: int, mask: int
) -> None:
    tar = bytearray(tar_of(FILES))
    tar[position % len(tar)] ^= mask
    if position % len(tar) < 512 + len(NEW["sample/pack.toml"]):
        # Inside the manifest a change may mean another, equally valid manifest: no hash covers it yet.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "changed.tar.zst")
            path.write_bytes(compress(bytes(tar)))
            try:
                check_pack(path)
            except PackError:
                return
    else:
        install(store, compress(bytes(tar)))
