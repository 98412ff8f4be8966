"""A backup is read whole or refused; nothing that its manifest does not list is ever written."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from appliance.backup.archive import check_archive, read_archive
from appliance.backup.copies import unpack
from appliance.backup.errors import BackupError
from appliance.backup.keys import new_identity
from appliance.backup.manifest import BackupFile, BackupManifest, encode, parse
from appliance.packs.tar import END, Member, padding, write_header
from tests.backup.sample import CONFIGURATION, backup, box


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    with box(tmp_path) as source:
        return Path(backup(source).path).read_bytes()


def read(data: bytes) -> tuple[BackupManifest, dict[str, bytes]]:
    files = {}

    def take(entry: BackupFile, chunks: Iterator[bytes]) -> None:
        files[entry.path] = b"".join(chunks)

    return read_archive(io.BytesIO(data), [], take), files


def packed(members: list[tuple[str, bytes]], end: bytes = END) -> bytes:
    data = b"".join(
        write_header(Member(path=path, size=len(body))) + body + bytes(padding(len(body)))
        for path, body in members
    )
    return zstandard.ZstdCompressor(write_checksum=True).compress(data + end)


def members(whole: bytes) -> list[tuple[str, bytes]]:
    manifest, files = read(whole)
    return [("MANIFEST.json", encode(manifest)), *files.items()]


def test_it_holds_what_the_box_has(whole: bytes) -> None:
    manifest, files = read(whole)
    assert list(files) == [file.path for file in manifest.files] == ["appliance.db", "appliance.toml"]
    assert files["appliance.toml"] == CONFIGURATION.encode()
    assert [pack.name for pack in manifest.packs] == ["sample"]
    assert packed(members(whole))
    assert read(packed(members(whole))) == (manifest, files)


def test_every_changed_byte_is_refused_or_changes_nothing(whole: bytes) -> None:
    expected = read(whole)
    refused = []
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        try:
            found = read(bytes(changed))
        except BackupError as error:
            refused.append(error.message)
        else:
            assert found == expected
    assert len(refused) > len(whole) * 0.98
    assert not [message for message in refused if "a pack" in message or "pack.toml" in message]


def test_every_missing_end_is_refused(whole: bytes) -> None:
    for length in range(0, len(whole), 7):
        with pytest.raises(BackupError):
            check_archive(io.BytesIO(whole[:length]), [])
    with pytest.raises(BackupError):
        check_archive(io.BytesIO(whole + b"\x00"), [])


def test_members_are_those_of_the_manifest_in_its_order(whole: bytes) -> None:
    first, store, configuration = members(whole)
    stranger = ("collections/x.db", b"x")
    for spoilt in (
        [store, first, configuration],
        [first, configuration, store],
        [first, store],
        [first, store, configuration, stranger],
        [first, store, configuration, configuration],
        [first, store, (configuration[0], b"another")],
        [first, store, (configuration[0], configuration[1][::-1])],
        [first, (".." + store[0], store[1]), configuration],
        [],
    ):
        with pytest.raises(BackupError):
            read(packed(spoilt))
    with pytest.raises(BackupError):
        read(packed([first, store, configuration], end=b""))


@pytest.mark.parametrize(
    "path",
    [
        "../appliance.db",
        "/etc/passwd",
        "collections/../../x.db",
        "collections/.db",
        "collections/a/b.db",
        "packs/x",
        "trust.json",
        "appliance.lock",
        "secret.key\n",
        "",
    ],
)
def test_a_manifest_cannot_name_another_place(whole: bytes, path: str) -> None:
    manifest = msgspec.to_builtins(read(whole)[0])
    manifest["files"][1]["path"] = path
    with pytest.raises(BackupError, match="not valid"):
        parse(msgspec.json.encode(manifest, order="sorted"))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"kind": "system"},
        {"more": 1},
        {"files": []},
        {"created": -1},
        {"created": 1 << 53},  # no calendar has it
        {"version": "0.1\x1b[2J"},
        {"name": "backup\n"},
        {"schema_version": "8"},
    ],
)
def test_a_manifest_of_another_form_is_refused(whole: bytes, change: dict[str, Any]) -> None:
    manifest = msgspec.to_builtins(read(whole)[0]) | change
    with pytest.raises(BackupError):
        parse(msgspec.json.encode(manifest, order="sorted"))


def test_a_manifest_has_one_form_only(whole: bytes) -> None:
    manifest = read(whole)[0]
    with pytest.raises(BackupError, match="canonical"):
        parse(encode(manifest) + b" ")
    twice = msgspec.structs.replace(manifest, files=[*manifest.files, manifest.files[0]])
    with pytest.raises(BackupError, match="twice"):
        parse(encode(twice))


def test_the_backup_of_a_newer_release_is_refused_before_anything_is_written(
    whole: bytes, tmp_path: Path
) -> None:
    manifest, files = read(whole)
    newer = msgspec.structs.replace(manifest, schema_version=999, version="9.0")
    data = packed([("MANIFEST.json", encode(newer)), *files.items()])
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(BackupError, match=r"newer release \(9.0, for schema 999"):
        unpack(io.BytesIO(data), [new_identity()], target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("path", ["secret.key", "tls/authority.pem"])
def test_a_secret_that_came_unencrypted_is_refused_before_anything_is_written(
    whole: bytes, tmp_path: Path, path: str
) -> None:
    """Whoever writes into a folder of unencrypted backups would else choose the box's secret and authority."""
    manifest, files = read(whole)
    forged = b"x" * 32
    entry = BackupFile(path=path, size=len(forged), sha256=hashlib.sha256(forged).hexdigest())
    spoilt = msgspec.structs.replace(manifest, files=[*manifest.files, entry])
    data = packed([("MANIFEST.json", encode(spoilt)), *files.items(), (path, forged)])
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(BackupError, match=f"{path}.*encrypted"):
        unpack(io.BytesIO(data), [], target)
    assert list(target.iterdir()) == []


def test_something_else_is_no_backup(tmp_path: Path) -> None:
    for data in (b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(1000), packed([("pack.toml", b"x")])):
        with pytest.raises(BackupError):
            check_archive(io.BytesIO(data), [])
