"""A system bundle: written, signed, verified, staged; and nothing of a bad one ever lands anywhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bundles import reader
from appliance.bundles.errors import BundleError, BundleSpaceError
from appliance.bundles.manifest import encode_manifest, parse_manifest
from appliance.bundles.reader import check_bundle, read_bundle_manifest, stage
from appliance.bundles.tree import check_tree, list_tree
from appliance.bundles.writer import write_bundle
from appliance.packs.tar import END
from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import signature_path
from appliance.signing.trust import Verified
from appliance.signing.verification import verify_file
from tests.bundles.samples import (
    LINKS,
    TREE,
    entry,
    manifest_json,
    manifest_of,
    member,
    raw_bundle,
    snapshot,
    system_bundle,
    write_tree,
)
from tests.packs.sample import compress
from tests.signing.samples import Box

KEY = SecretKey.generate()
X = b"contents"


def test_a_release_travels(tmp_path: Path) -> None:
    box = Box(tmp_path / "box", KEY)
    path = system_bundle(tmp_path, KEY, 7)
    assert path.name == "appliance-1.0.0-7.tar.zst"
    verified = verify_file(path, box.store(), name="appliance", kind="system")
    seen: list[tuple[int, int]] = []
    old = os.umask(0o077)
    try:
        manifest = stage(path, verified, tmp_path / "staged", lambda done, total: seen.append((done, total)))
    finally:
        os.umask(old)
    assert manifest == read_bundle_manifest(path, verified) == check_bundle(path, verified)
    assert (manifest.schema_version, manifest.schema_readable_from, manifest.requires.glibc) == (
        10,
        9,
        "2.36",
    )
    assert snapshot(tmp_path / "staged") == snapshot(tmp_path / "tree-7")
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "staged").rglob("*") if p.is_dir()} == {0o755}
    assert seen[-1] == (manifest.unpacked_bytes, manifest.unpacked_bytes)
    check_tree(manifest, tmp_path / "staged")
    with pytest.raises(BundleError, match="cannot unpack"):  # what is there is not touched
        stage(path, verified, tmp_path / "staged")
    check_tree(manifest, tmp_path / "staged")


def test_equal_trees_give_equal_bundles(tmp_path: Path) -> None:
    one = system_bundle(tmp_path / "one", KEY)
    two = system_bundle(tmp_path / "two", KEY)
    assert one.read_bytes() == two.read_bytes()
    assert signature_path(one).read_bytes() == signature_path(two).read_bytes()


@pytest.mark.parametrize("spoil", ["change", "mode", "more", "less", "link", "folder-link"])
def test_a_tree_that_is_not_the_signed_one_is_found(tmp_path: Path, spoil: str) -> None:
    root = write_tree(tmp_path / "tree")
    manifest = manifest_of(root)
    check_tree(manifest, root)
    if spoil == "change":
        (root / "appliance").write_bytes(TREE["appliance"].replace(b"served", b"Served"))
    elif spoil == "mode":
        (root / "empty").chmod(0o755)
    elif spoil == "more":
        (root / "_internal/more.py").write_bytes(b"")
    elif spoil == "less":
        (root / "empty").unlink()
    elif spoil == "link":
        (root / "run").unlink()
        (root / "run").symlink_to("empty")
    else:
        (root / "_internal").rename(tmp_path / "elsewhere")
        (root / "_internal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError):
        check_tree(manifest, root)


def refused(path: Path, folder: Path, verified: Verified, words: str) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(BundleError, match=words):
        check_bundle(path, verified)
    with pytest.raises(BundleError, match=words):
        stage(path, verified, folder / "staged")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "members"),
    [
        ("leads elsewhere|is a link", [member("a", link="b")]),
        ("where its MANIFEST.json lists", [member("../a", X)]),
        ("where its MANIFEST.json lists", [member("/a", X)]),
        ("where its MANIFEST.json lists", [member("b", X)]),
        ("bytes instead of", [member("a", X + b"x")]),
        ("bytes instead of", [member("a", X[:-1])]),
        ("mode 0755 instead of 0644", [member("a", X, 0o755)]),
        ("mode 4755 instead of 0644", [member("a", X, 0o4755)]),
        ("SHA-256", [member("a", b"C" + X[1:])]),
        ("the bundle lacks a", []),
        ("more than its MANIFEST.json lists", [member("a", X), member("a", X)]),
        ("more than its MANIFEST.json lists", [member("a", X), member("b", X)]),
        ("more than its MANIFEST.json lists", [member("a", X), bytes(200_000)]),
    ],
)
def test_members_that_the_manifest_does_not_list(tmp_path: Path, words: str, members: list[bytes]) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), *members)
    refused(tmp_path / "b", tmp_path, verified, words)


@pytest.mark.parametrize("kind", [b"1", b"3", b"4", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"7"])
def test_special_members(tmp_path: Path, kind: bytes) -> None:
    header = bytearray(member("a", X))
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header[:512])
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), bytes(header))
    refused(tmp_path / "b", tmp_path, verified, "holds a|holds an unknown")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), member("a", X), bytes(1 << 28))
    assert verified.size < 100_000
    refused(tmp_path / "b", tmp_path, verified, "more than its MANIFEST.json lists")


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ("leaves the bundle", [entry("../a", X)]),
        ("leaves the bundle", [entry("/a", X)]),
        ("leaves the bundle", [entry("a/../../b", X)]),
        ("leaves the bundle", [entry("a//b", X)]),
        ("leaves the bundle", [entry("./a", X)]),
        ("leaves the bundle", [entry("a/", X)]),
        ("cannot be", [entry("a\nb", X)]),
        ("cannot be", [entry("", X)]),
        ("cannot be", [entry("ä", X)]),
        ("cannot be", [entry("a\\b", X)]),
        ("cannot be", [entry("a" * 256, X)]),
        ("twice", [entry("a", X), entry("a", X)]),
        ("twice", [entry("MANIFEST.json", X)]),
        ("in order", [entry("b", X), entry("a", X)]),
        ("as a file and as a folder", [entry("a", X), entry("a/b", X)]),
        ("as a file and as a folder", [{"path": "a", "link": "c"}, entry("a/b", X), entry("c", X)]),
        ("as a file and as a link", [{**entry("a", X), "link": "b"}, entry("b", X)]),
        ("lacks size", [{"path": "a", "size": 1, "mode": "0644"}]),
        ("lacks size", [{"path": "a"}]),
        ("not valid", [entry("a", X, "4755")]),
        ("not valid", [entry("a", X, "0777")]),
        ("not valid", [{**entry("a", X), "size": -1}]),
        ("not valid", [{**entry("a", X), "owner": "root"}]),
        ("not valid", []),
        ("link that leaves", [entry("a", X), {"path": "b", "link": "/etc/shadow"}]),
        ("link that leaves", [entry("a", X), {"path": "b", "link": "../a"}]),
        ("link that leaves", [entry("a", X), {"path": "b", "link": ".."}]),
        ("link that leaves", [entry("a", X), {"path": "b", "link": "."}]),
        ("link that leaves", [entry("a", X), {"path": "b", "link": ""}]),
        ("link that leaves", [entry("a", X), {"path": "b", "link": "absent"}]),
        ("link that leaves", [entry("a", X), {"path": "c/b", "link": "../../tree/a"}]),
        ("link that leaves", [entry("a/x", X), {"path": "b", "link": "a/../../etc"}]),
        # Through another link, upward steps would lead out: they may only stand at the beginning.
        ("link that leaves", [entry("a/x", X), {"path": "b", "link": "a"}, {"path": "c", "link": "b/../a"}]),
    ],
)
def test_manifests_that_list_what_may_not_be(
    tmp_path: Path, words: str, entries: list[dict[str, Any]]
) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json(entries), member("a", X))
    refused(tmp_path / "b", tmp_path, verified, words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("canonical", manifest_json([entry("a", X)]).replace(b":", b": ", 1)),
        ("canonical", manifest_json([entry("a", X)]) + b"\n"),
        ("canonical", manifest_json([entry("a", X)]).replace(b'"schema":1', b'"schema":1,"schema":1')),
        ("not valid", manifest_json([entry("a", X)], schema=2)),
        ("not valid", manifest_json([entry("a", X)], kind="other")),
        ("not valid", manifest_json([entry("a", X)], more=1)),
        ("not valid", manifest_json([entry("a", X)], name="../a")),
        ("not valid", manifest_json([entry("a", X)], version="../1")),
        ("not valid", manifest_json([entry("a", X)], sequence=1 << 60)),
        ("not valid", b"[" * 100_000),
        ("not valid", b"\xff"),
        ("is of appliance number 1", manifest_json([entry("a", X)], sequence=2)),
        ("is of appliance number 1", manifest_json([entry("a", X)], name="other")),
        ("is of appliance number 1", manifest_json([entry("a", X)], kind="pack")),
    ],
)
def test_manifests_that_are_not_in_form_or_not_what_was_signed(
    tmp_path: Path, words: str, text: bytes
) -> None:
    verified = raw_bundle(tmp_path / "b", text, member("a", X))
    refused(tmp_path / "b", tmp_path, verified, words)


def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), member("a", X))
    stage(tmp_path / "b", verified, tmp_path / "good")
    for number, data in enumerate((b"", b"x" * 9000, compress(b""), compress(member("a", X) + END))):
        (tmp_path / f"{number}").write_bytes(data)
        with pytest.raises(BundleError):
            check_bundle(tmp_path / f"{number}", None)
    with pytest.raises(BundleError, match="not a regular file"):
        check_bundle(tmp_path / "good", None)


def test_a_file_that_changes_after_it_was_verified_is_not_used(tmp_path: Path) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), member("a", X))
    other = manifest_json([entry("a", b"evil")])
    raw_bundle(tmp_path / "b", other, member("a", b"evil"))
    refused(tmp_path / "b", tmp_path, verified, "changed while it was read")


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = raw_bundle(tmp_path / "b", manifest_json([entry("a", X)]), member("a", X))
    monkeypatch.setattr(reader, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(BundleSpaceError, match="1 MiB are free"):
        stage(tmp_path / "b", verified, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    path = system_bundle(tmp_path, KEY)
    verified = verify_file(path, Box(tmp_path / "box", KEY).store())

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(path, verified, tmp_path / "staged", stop)
    assert not (tmp_path / "staged").exists()


def test_a_tree_that_cannot_be_a_bundle_is_said(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", links={**LINKS, "out": "../elsewhere"})
    with pytest.raises(BundleError, match="link that leaves"):
        list_tree(root)
    (root / "out").unlink()
    os.mkfifo(root / "pipe")
    with pytest.raises(BundleError, match="not a regular file"):
        list_tree(root)
    (root / "pipe").unlink()
    manifest = manifest_of(root)
    (root / "empty").write_bytes(b"no longer")
    with pytest.raises(BundleError, match="empty changed while"):
        write_bundle(root, manifest, tmp_path / "b.tar.zst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


def test_the_manifest_has_one_spelling(tmp_path: Path) -> None:
    text = encode_manifest(manifest_of(write_tree(tmp_path / "tree")))
    assert encode_manifest(parse_manifest(text)) == text
    assert msgspec.json.encode(msgspec.json.decode(text), order="sorted") == text
    assert b" " not in text
    assert (
        hashlib.sha256(text).hexdigest() == hashlib.sha256(encode_manifest(parse_manifest(text))).hexdigest()
    )


def test_every_mutated_byte_of_a_bundle_is_refused(tmp_path: Path) -> None:
    """Header, manifest, contents, end, checksum: the whole file, byte by byte."""
    path = system_bundle(tmp_path, KEY, files={"appliance": b"run", "z": bytes(300)}, links={})
    store = Box(tmp_path / "box", KEY).store()
    good = path.read_bytes()
    assert verify_file(path, store).size == len(good)
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(SigningError) as refusal:
            verify_file(path, store)
        assert refusal.value.code == "damaged"
    for cut in (0, 1, 4, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(SigningError):
            verify_file(path, store)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_bundle_that_is_changed_and_signed_again_still_unpacks_to_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Even where the signature does not help, what is staged is what the manifest lists."""
    folder = tmp_path_factory.mktemp("mutated")
    text = manifest_json([entry("a", X), entry("b/c", X * 90), {"path": "d", "link": "b/c"}])
    stream = bytearray(
        b"".join(
            (
                member("MANIFEST.json", text),
                member("a", X),
                member("b/c", X * 90),
                member("d", mode=0o777, link="b/c"),
                END,
            )
        )
    )
    first = 512 + len(text)
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(first, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "b").write_bytes(compress(bytes(stream)))
    try:
        manifest = check_bundle(folder / "b", None)
    except BundleError:
        return
    assert encode_manifest(manifest) == text
