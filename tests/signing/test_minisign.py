"""Both ways with the stock minisign: it takes our keys and signatures, we take its."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.signing.errors import SigningError
from appliance.signing.keys import (
    SecretKey,
    read_public_key,
    read_secret_key,
    write_public_key,
    write_secret_key,
)
from appliance.signing.verification import verify_file
from tests.signing.samples import FAST, Box, signed

pytestmark = pytest.mark.skipif(
    shutil.which("minisign") is None, reason="the stock minisign is not installed (apt-get install minisign)"
)
COMMENT = "name:sample sequence:7 kind:pack"


def minisign(*words: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["minisign", *map(str, words)], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_minisign_verifies_what_we_sign(tmp_path: Path) -> None:
    key = SecretKey.generate()
    write_public_key(tmp_path / "a.pub", key.public)
    file = signed(tmp_path / "sample.tar.zst", key, 7)
    done = minisign("-V", "-m", file, "-p", tmp_path / "a.pub")
    assert done.returncode == 0, done.stderr
    assert COMMENT in done.stdout
    assert minisign("-V", "-m", file, "-P", key.public.line()).returncode == 0
    file.write_bytes(b"other data")
    assert minisign("-V", "-m", file, "-p", tmp_path / "a.pub").returncode != 0


def test_we_verify_what_minisign_signs(tmp_path: Path) -> None:
    assert minisign("-G", "-W", "-p", tmp_path / "a.pub", "-s", tmp_path / "a.key").returncode == 0
    key = read_secret_key(tmp_path / "a.key", None)
    assert read_public_key(tmp_path / "a.pub") == key.public
    file = tmp_path / "sample.tar.zst"
    file.write_bytes(b"some data")
    done = minisign("-S", "-H", "-m", file, "-s", tmp_path / "a.key", "-t", COMMENT, "-c", "hello")
    assert done.returncode == 0, done.stderr
    box = Box(tmp_path / "box", key)
    verified = verify_file(file, box.store())
    assert (verified.name, verified.sequence, verified.kind) == ("sample", 7, "pack")
    minisign("-S", "-l", "-m", file, "-s", tmp_path / "a.key", "-t", COMMENT)
    with pytest.raises(SigningError, match="legacy"):
        verify_file(file, box.store())
    minisign("-S", "-m", file, "-s", tmp_path / "a.key", "-t", "of something else")
    with pytest.raises(SigningError, match="trusted comment"):
        verify_file(file, box.store())


@pytest.mark.parametrize("password", [None, "a password"])
def test_minisign_signs_with_our_secret_keys(tmp_path: Path, password: str | None) -> None:
    key = SecretKey.generate()
    write_secret_key(tmp_path / "a.key", key, password, FAST)
    (tmp_path / "file").write_bytes(b"some data")
    done = minisign(
        "-S", "-m", tmp_path / "file", "-s", tmp_path / "a.key", "-t", COMMENT, text=f"{password}\n"
    )
    assert done.returncode == 0, done.stderr
    assert verify_file(tmp_path / "file", Box(tmp_path / "box", key).store()).sequence == 7


def test_we_sign_with_minisigns_encrypted_secret_key(tmp_path: Path) -> None:
    # minisign asks scrypt for a gigabyte: some seconds.
    done = minisign("-G", "-p", tmp_path / "a.pub", "-s", tmp_path / "a.key", text="secret\nsecret\n")
    assert done.returncode == 0, done.stderr
    assert read_secret_key(tmp_path / "a.key", "secret").public == read_public_key(tmp_path / "a.pub")
