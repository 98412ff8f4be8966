"""What is encrypted opens with the right key only, whole or not at all; and stock age reads and writes it."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.backup.encryption import CHUNK, TAG, DecryptingReader, EncryptingWriter
from appliance.backup.errors import BackupError
from appliance.backup.keys import (
    Identity,
    box_identity,
    new_identity,
    parse_recipient,
    public_text,
    read_identities,
    secret_text,
)


def encrypted(data: bytes, *identities: Identity) -> bytes:
    output = io.BytesIO()
    writer = EncryptingWriter(output, [each.public_key() for each in identities])
    for start in range(0, len(data), 10_000):
        writer.write(data[start : start + 10_000])
    writer.finish()
    return output.getvalue()


def decrypted(data: bytes, *identities: Identity) -> bytes:
    return DecryptingReader(io.BytesIO(data), identities).read(1 << 30)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 200_000])
def test_each_of_the_keys_opens_it(size: int) -> None:
    one, two = new_identity(), box_identity(os.urandom(32))
    data = random.Random(size).randbytes(size)
    sealed = encrypted(data, one, two)
    assert decrypted(sealed, one) == decrypted(sealed, new_identity(), two) == data
    with pytest.raises(BackupError, match="to another key"):
        decrypted(sealed, new_identity())
    with pytest.raises(BackupError, match="--identity"):
        decrypted(sealed)


def test_every_changed_byte_is_refused() -> None:
    identity = new_identity()
    sealed = encrypted(b"x" * 300, identity)
    for position in range(len(sealed)):
        for bit in (1, 128):
            changed = bytearray(sealed)
            changed[position] ^= bit
            with pytest.raises(BackupError):
                decrypted(bytes(changed), identity)


def test_every_missing_end_is_refused() -> None:
    identity = new_identity()
    sealed = encrypted(b"x" * 300, identity)
    for length in range(len(sealed)):
        with pytest.raises(BackupError):
            decrypted(sealed[:length], identity)
    with pytest.raises(BackupError):
        decrypted(sealed + b"\x00", identity)


def test_chunks_have_their_place() -> None:
    identity = new_identity()
    sealed = encrypted(bytes(3 * CHUNK), identity)
    size = CHUNK + TAG
    start = len(sealed) - 3 * size
    first, second, third = (sealed[start + n * size : start + (n + 1) * size] for n in range(3))
    for chunks in ([second, first, third], [first, third], [first, second], [first, second, third, third]):
        with pytest.raises(BackupError):
            decrypted(sealed[:start] + b"".join(chunks), identity)


def test_keys_are_written_as_age_writes_them(tmp_path: Path) -> None:
    published = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    assert public_text(parse_recipient(published)) == published
    for position in range(4, len(published)):
        changed = (
            published[:position] + ("q" if published[position] != "q" else "p") + published[position + 1 :]
        )
        with pytest.raises(BackupError):
            parse_recipient(changed)
    identity = new_identity()
    file = tmp_path / "key"
    file.write_text(f"# a comment\n\n{secret_text(identity)}\n")
    assert read_identities(file)[0].private_bytes_raw() == identity.private_bytes_raw()
    for text in ("", "# nothing\n", public_text(identity.public_key()), "é", secret_text(identity)[:-1]):
        file.write_text(text)
        with pytest.raises(BackupError) as refused:
            read_identities(file)
        assert "AGE-SECRET-KEY-1Q" not in refused.value.message


def test_stock_age_opens_ours_and_we_open_its(tmp_path: Path) -> None:
    age = shutil.which("age")
    if age is None:
        pytest.skip("age is not installed here")
    identity = new_identity()
    key = tmp_path / "key"
    key.write_text(secret_text(identity) + "\n")
    data = random.Random(1).randbytes(200_000)
    ours = subprocess.run([age, "-d", "-i", str(key)], input=encrypted(data, identity), capture_output=True)
    assert ours.stdout == data, ours.stderr
    command = [age, "-r", public_text(identity.public_key())]
    theirs = subprocess.run(command, input=data, capture_output=True, check=True)
    assert decrypted(theirs.stdout, identity) == data
