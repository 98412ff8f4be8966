"""Keys, trust stores and signed files to play with; secret keys are made here and thrown away."""

from __future__ import annotations

from pathlib import Path

from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import Kind, Subject, sign_file
from appliance.signing.trust import TrustStore
from appliance.signing.trust_list import RevokedKey, TrustList, write_trust_list

# libsodium's smallest scrypt: as good for a test as the gigabyte of a real key.
FAST = (32_768, 16 << 20)


class Box:
    """A box's side: a folder of trusted keys and a record; ``store()`` opens it anew."""

    def __init__(self, directory: Path, *trusted: SecretKey) -> None:
        self.trust_dir = directory / "trust.d"
        self.data_dir = directory / "data"
        self.trust_dir.mkdir(parents=True)
        self.data_dir.mkdir()
        for key in trusted:
            self.place(key)

    @property
    def record(self) -> Path:
        return self.data_dir / "trust.json"

    def place(self, key: SecretKey) -> None:
        write_public_key(self.trust_dir / f"{key.public.id}.pub", key.public)

    def store(self) -> TrustStore:
        return TrustStore(self.record, (self.data_dir / "no such folder", self.trust_dir))


def signed(
    path: Path,
    key: SecretKey,
    sequence: int = 1,
    name: str = "sample",
    kind: Kind = "pack",
    data: bytes = b"some data",
) -> Path:
    """Write a file and its signature."""
    path.write_bytes(data)
    sign_file(path, key, Subject(name=name, sequence=sequence, kind=kind))
    return path


def trust_list(
    path: Path,
    key: SecretKey,
    sequence: int = 1,
    *,
    revoke: tuple[SecretKey, ...] = (),
    bring: tuple[SecretKey, ...] = (),
) -> Path:
    """Write a signed trust list."""
    document = TrustList(
        sequence=sequence,
        created=1_800_000_000,
        revoked=tuple(RevokedKey(key_id=each.public.id, reason="the laptop was stolen") for each in revoke),
        trusted=tuple(each.public.line() for each in bring),
    )
    write_trust_list(path, document, key)
    return path
