"""Refusals of signed files, in words that an operator understands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import Kind, Subject, parse_subject, signature_path
from appliance.signing.verification import verify_file
from tests.signing.samples import Box, signed

KEY = SecretKey.generate()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box", KEY)


def refused(path: Path, box: Box, name: str | None = None, kind: Kind | None = None) -> SigningError:
    with pytest.raises(SigningError) as refusal:
        verify_file(path, box.store(), name=name, kind=kind)
    return refusal.value


def test_a_good_signature_says_what_the_file_is(tmp_path: Path, box: Box) -> None:
    verified = verify_file(signed(tmp_path / "f", KEY, 12), box.store(), name="sample", kind="pack")
    assert (verified.name, verified.sequence, verified.kind) == ("sample", 12, "pack")
    assert (verified.key_id, verified.size) == (KEY.public.id, 9)
    assert not box.record.exists()  # looking is not accepting


def test_without_a_signature(tmp_path: Path, box: Box) -> None:
    (tmp_path / "f").write_bytes(b"data")
    error = refused(tmp_path / "f", box)
    assert (error.code, error.message) == ("unsigned", "f is not signed: there is no f.minisig beside it")


def test_a_file_that_is_not_there_is_not_said_to_be_unsigned(tmp_path: Path, box: Box) -> None:
    error = refused(tmp_path / "f", box)
    assert error.message == f"there is no file {tmp_path / 'f'}"


def test_an_unknown_key(tmp_path: Path, box: Box) -> None:
    stranger = SecretKey.generate()
    error = refused(signed(tmp_path / "f", stranger), box)
    assert error.code == "unknown_key"
    assert f"f is signed by key {stranger.public.id}, which this box does not trust" in error.message
    assert "trust.d" in error.message


def test_a_key_that_only_borrows_a_known_id(tmp_path: Path, box: Box) -> None:
    forger = SecretKey(KEY.public.id_bytes, SecretKey.generate().seed)
    error = refused(signed(tmp_path / "f", forger), box)
    assert (error.code, "was changed" in error.message) == ("damaged", True)


def test_something_else_than_asked_for(tmp_path: Path, box: Box) -> None:
    path = signed(tmp_path / "f", KEY)
    error = refused(path, box, kind="system")
    assert (error.code, error.message) == ("wrong_name", "f is a model pack (sample), not a system bundle")
    assert refused(path, box, name="other").message == "f is sample, not other"


def test_the_signature_of_another_file(tmp_path: Path, box: Box) -> None:
    one = signed(tmp_path / "one", KEY)
    other = signed(tmp_path / "other", KEY, data=b"other data")
    signature_path(one).write_bytes(signature_path(other).read_bytes())
    assert refused(one, box).code == "damaged"


def test_parts_of_two_signatures_do_not_mix(tmp_path: Path, box: Box) -> None:
    one = signature_path(signed(tmp_path / "one", KEY, 1)).read_text().split("\n")
    two = signature_path(signed(tmp_path / "two", KEY, 2)).read_text().split("\n")
    path = signed(tmp_path / "one", KEY, 1)
    # Both sign the same bytes, so the first signatures are even equal; the comment's is not.
    signature_path(path).write_text("\n".join([*one[:2], two[2], one[3], ""]))
    assert refused(path, box).code == "damaged"


def test_every_changed_byte_of_a_signature_is_refused(tmp_path: Path, box: Box) -> None:
    path = signed(tmp_path / "f", KEY)
    good = signature_path(path).read_bytes()
    store = box.store()
    untrusted = range(len("untrusted comment: "), good.index(b"\n"))
    for position in range(len(good)):
        for mask in (1, 0x20, 0x80):
            changed = bytearray(good)
            changed[position] ^= mask
            signature_path(path).write_bytes(changed)
            try:
                verify_file(path, store)
            except SigningError:
                continue
            # Nobody vouches for the first line's words: they are never read and never shown.
            assert position in untrusted
    for cut in range(len(good)):
        signature_path(path).write_bytes(good[:cut])
        with pytest.raises(SigningError):
            verify_file(path, store)
    for position in range(len(good) + 1):
        signature_path(path).write_bytes(good[:position] + b"A" + good[position:])
        if position not in untrusted and position != untrusted.stop:
            with pytest.raises(SigningError):
                verify_file(path, store)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4999), st.integers(1, 255), st.sampled_from(["change", "cut", "insert"]))
def test_every_changed_byte_of_a_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int, how: str
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    data = bytes(range(250)) * 20
    path = signed(folder / "f", KEY, data=data)
    changed = (
        bytes([data[position] ^ mask])
        if how == "change"
        else b""
        if how == "cut"
        else bytes([mask, data[position]])
    )
    path.write_bytes(data[:position] + changed + data[position + 1 :])
    assert refused(path, Box(folder / "box", KEY)).code == "damaged"


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "name:a sequence:1",
        "name:a sequence:0 kind:pack",
        "name:a sequence:01 kind:pack",
        "name:a sequence:-1 kind:pack",
        "name:a sequence:9999999999999999 kind:pack",
        "name:a sequence:1 kind:other",
        "name:../a sequence:1 kind:pack",
        "name:A sequence:1 kind:pack",
        "name:a  sequence:1 kind:pack",
        "name:a sequence:1 kind:pack ",
        "name:a sequence:1 kind:pack\n",
        "name:a sequence:\u0661 kind:pack",
        "timestamp:1 file:a hashed",
    ],
)
def test_other_trusted_comments_are_not_ours(comment: str) -> None:
    with pytest.raises(SigningError, match="not made for an appliance"):
        parse_subject(comment)
    with pytest.raises(SigningError):
        Subject(name="Bad Name", sequence=1, kind="pack").comment()


def test_what_is_no_file_is_refused(tmp_path: Path, box: Box) -> None:
    path = signed(tmp_path / "f", KEY)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(path, box).message


def test_a_name_that_leaves_no_room_for_that_of_a_signature_is_said(tmp_path: Path, box: Box) -> None:
    (tmp_path / ("f" * 250)).write_bytes(b"data")
    error = refused(tmp_path / ("f" * 250), box)
    assert error.code == "damaged"
    assert "name too long" in error.message
