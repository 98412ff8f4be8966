"""Key files: minisign's formats, passwords, and what is refused."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from appliance.signing.errors import SigningError
from appliance.signing.keys import (
    SecretKey,
    is_encrypted,
    read_public_key,
    read_secret_key,
    write_public_key,
    write_secret_key,
)
from tests.signing.samples import FAST


def test_keys_come_back_as_they_were_written(tmp_path: Path) -> None:
    key = SecretKey.generate()
    write_public_key(tmp_path / "a.pub", key.public)
    assert read_public_key(tmp_path / "a.pub") == key.public
    write_secret_key(tmp_path / "a.key", key, "a password", FAST)
    write_secret_key(tmp_path / "b.key", key, None)
    for path, password in ((tmp_path / "a.key", "a password"), (tmp_path / "b.key", None)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert is_encrypted(path) == (password is not None)
        read = read_secret_key(path, password)
        assert (read.seed, read.public) == (key.seed, key.public)
    assert key.seed not in base64.b64decode((tmp_path / "a.key").read_text().splitlines()[1])


@pytest.mark.parametrize("password", ["another", "", None])
def test_a_wrong_password_is_said(tmp_path: Path, password: str | None) -> None:
    write_secret_key(tmp_path / "a.key", SecretKey.generate(), "a password", FAST)
    with pytest.raises(SigningError, match="password"):
        read_secret_key(tmp_path / "a.key", password)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    write_public_key(tmp_path / "a.pub", SecretKey.generate().public)
    with pytest.raises(SigningError, match="never overwritten"):
        write_public_key(tmp_path / "a.pub", SecretKey.generate().public)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pub"]


@pytest.mark.parametrize("data", [b"", b"x", b"untrusted comment: \nAAAA\n", b"\xff\n\n", b"a" * 5000])
def test_other_files_are_no_keys(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    for read in (read_public_key, lambda path: read_secret_key(path, "")):
        with pytest.raises(SigningError) as refusal:
            read(tmp_path / "a")
        assert refusal.value.code == "invalid_key"


def test_a_key_file_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    write_secret_key(tmp_path / "a.key", SecretKey.generate(), "x", FAST)
    comment, line = (tmp_path / "a.key").read_text().splitlines()
    data = bytearray(base64.b64decode(line))
    data[46:54] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "a.key").write_text(f"{comment}\n{base64.b64encode(data).decode()}\n")
    with pytest.raises(SigningError, match="more memory"):
        read_secret_key(tmp_path / "a.key", "x")


def test_a_changed_secret_key_does_not_sign(tmp_path: Path) -> None:
    write_secret_key(tmp_path / "a.key", SecretKey.generate(), None)
    comment, line = (tmp_path / "a.key").read_text().splitlines()
    for position in (62, 100, 130):
        data = bytearray(base64.b64decode(line))
        data[position] ^= 1
        (tmp_path / "a.key").write_text(f"{comment}\n{base64.b64encode(data).decode()}\n")
        with pytest.raises(SigningError, match="damaged"):
            read_secret_key(tmp_path / "a.key", None)
