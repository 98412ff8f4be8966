"""Who is trusted: roots, rotation, revocation, and sequences that only grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey
from appliance.signing.trust import TrustStore
from appliance.signing.trust_list import TrustList, encode_trust_list, parse_trust_list
from appliance.signing.verification import verify_file
from tests.signing.samples import Box, signed, trust_list

OLD, NEW, STRANGER = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box", OLD)


def code(path: Path, box: Box) -> str | None:
    """Return why a file is refused, None when it is not."""
    try:
        verify_file(path, box.store())
    except SigningError as error:
        return error.code
    return None


def accept(path: Path, box: Box) -> None:
    box.store().accept(verify_file(path, box.store()))


def test_older_sequences_are_refused_and_the_same_again_is_not(tmp_path: Path, box: Box) -> None:
    files = {number: signed(tmp_path / f"f{number}", OLD, number) for number in (1, 2, 3)}
    accept(files[2], box)
    assert code(files[1], box) == "older_sequence"
    assert code(files[2], box) is None
    accept(files[3], box)
    accept(files[3], box)
    with pytest.raises(
        SigningError, match="sample number 2, older than number 3, which this box accepted before"
    ):
        verify_file(files[2], box.store())
    assert verify_file(files[2], box.store(), check_sequence=False).sequence == 2
    # Another name, and another kind of the same name, count for themselves.
    assert code(signed(tmp_path / "other", OLD, 1, name="other"), box) is None
    assert code(signed(tmp_path / "system", OLD, 1, kind="system"), box) is None


def test_an_old_file_of_an_older_key_is_a_way_back_too(tmp_path: Path, box: Box) -> None:
    box.place(NEW)
    accept(signed(tmp_path / "a", OLD, 5), box)
    accept(signed(tmp_path / "b", NEW, 6), box)
    assert code(tmp_path / "a", box) == "older_sequence"


def test_a_stolen_key_does_not_lock_out_later_releases(tmp_path: Path, box: Box) -> None:
    box.place(NEW)
    accept(signed(tmp_path / "stolen", OLD, (1 << 53) - 1), box)
    box.store().apply_list(trust_list(tmp_path / "old.trust.json", OLD, (1 << 53) - 1, bring=(STRANGER,)))
    # The list that revokes is not held against the sequences of the stolen key, nor is what follows.
    box.store().apply_list(trust_list(tmp_path / "new.trust.json", NEW, 1, revoke=(OLD, STRANGER)))
    accept(signed(tmp_path / "fix", NEW, 7), box)
    assert code(tmp_path / "stolen", box) == "revoked_key"
    assert code(signed(tmp_path / "foul", STRANGER, 8), box) == "revoked_key"


def test_a_revoked_key_is_refused_with_the_reason(tmp_path: Path, box: Box) -> None:
    box.place(NEW)
    path = signed(tmp_path / "f", OLD)
    assert code(path, box) is None
    box.store().apply_list(trust_list(tmp_path / "a.trust.json", NEW, revoke=(OLD,)))
    with pytest.raises(
        SigningError, match=r"was revoked \(the laptop was stolen\): get one that is signed by"
    ):
        verify_file(path, box.store())
    states = {entry["key_id"]: entry["revoked"] for entry in box.store().summary()}
    assert states == {OLD.public.id: "the laptop was stolen", NEW.public.id: None}


def test_a_key_goes_on_to_the_next(tmp_path: Path, box: Box) -> None:
    path = signed(tmp_path / "f", NEW)
    assert code(path, box) == "unknown_key"
    once = trust_list(tmp_path / "a.trust.json", OLD, bring=(NEW,))
    box.store().apply_list(once)
    before = box.record.read_bytes()
    box.store().apply_list(once)
    assert box.record.read_bytes() == before
    assert code(path, box) is None
    # The new one may end the old one, and stays trusted itself.
    box.store().apply_list(trust_list(tmp_path / "b.trust.json", NEW, 2, revoke=(OLD,), bring=(STRANGER,)))
    assert code(path, box) is None
    assert code(signed(tmp_path / "g", STRANGER), box) is None


def test_the_record_alone_makes_nobody_trusted(tmp_path: Path, box: Box) -> None:
    box.store().apply_list(trust_list(tmp_path / "a.trust.json", OLD, bring=(NEW,)))
    forged = json.loads(box.record.read_text())
    forged["lists"][0]["document"] = forged["lists"][0]["document"].replace(
        NEW.public.line(), STRANGER.public.line()
    )
    box.record.write_text(json.dumps(forged))
    assert {known.key.id for known in box.store().known_keys()} == {OLD.public.id}
    # A list by a key that is no root any more does not count either.
    forged["lists"][0]["document"] = forged["lists"][0]["document"].replace(
        STRANGER.public.line(), NEW.public.line()
    )
    box.record.write_text(json.dumps(forged))
    assert len(box.store().known_keys()) == 2
    (box.trust_dir / f"{OLD.public.id}.pub").unlink()
    assert box.store().known_keys() == ()


def test_lists_that_are_refused(tmp_path: Path, box: Box) -> None:
    box.place(NEW)
    store = box.store()
    refusals = {
        "does not trust": trust_list(tmp_path / "a.trust.json", STRANGER, bring=(STRANGER,)),
        "not as a trust list": signed(tmp_path / "b.trust.json", OLD),
        "is not valid": signed(tmp_path / "c.trust.json", OLD, name="trust", kind="revocation"),
        "not signed": tmp_path / "d.trust.json",
    }
    refusals["not signed"].write_bytes(b"{}")
    good = TrustList(sequence=3, created=1, trusted=(STRANGER.public.line(),))
    refusals["that its signature names"] = signed(
        tmp_path / "e.trust.json", OLD, 4, name="trust", kind="revocation", data=encode_trust_list(good)
    )
    spaced = encode_trust_list(good).replace(b":", b": ", 1)
    refusals["canonical"] = signed(
        tmp_path / "f.trust.json", OLD, 3, name="trust", kind="revocation", data=spaced
    )
    for words, path in refusals.items():
        with pytest.raises(SigningError, match=words):
            store.apply_list(path)
    assert not box.record.exists()
    with pytest.raises(SigningError, match="cannot revoke itself"):
        trust_list(tmp_path / "g.trust.json", OLD, revoke=(OLD,))
    store.apply_list(trust_list(tmp_path / "h.trust.json", OLD, 5, revoke=(NEW,)))
    with pytest.raises(SigningError, match="older"):
        store.apply_list(trust_list(tmp_path / "i.trust.json", OLD, 4, bring=(STRANGER,)))
    with pytest.raises(SigningError, match="which was revoked"):
        store.apply_list(trust_list(tmp_path / "j.trust.json", OLD, 6, bring=(NEW,)))
    with pytest.raises(SigningError, match="which was revoked"):
        store.apply_list(trust_list(tmp_path / "k.trust.json", NEW, 6, revoke=(OLD,)))


def test_a_list_that_signs_its_own_signer_away_is_refused(tmp_path: Path, box: Box) -> None:
    text = encode_trust_list(TrustList(sequence=1, created=1, trusted=(NEW.public.line(),)))
    text = text.replace(b'"revoked":[]', b'"revoked":[{"key_id":"%s","reason":""}]' % OLD.public.id.encode())
    path = signed(tmp_path / "a.trust.json", OLD, name="trust", kind="revocation", data=text)
    assert parse_trust_list(text).revoked[0].key_id == OLD.public.id
    with pytest.raises(SigningError, match="another trusted key must sign it"):
        box.store().apply_list(path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema":2}', b"\xff", b"{}" * 10_000_000])
def test_a_damaged_record_accepts_nothing(tmp_path: Path, box: Box, damage: bytes) -> None:
    path = signed(tmp_path / "f", OLD)
    box.record.write_bytes(damage)
    assert code(path, box) == "store"


def test_key_files_that_others_may_write_are_not_trusted(tmp_path: Path, box: Box) -> None:
    path = signed(tmp_path / "f", OLD)
    (box.trust_dir / f"{OLD.public.id}.pub").chmod(0o666)
    assert code(path, box) == "store"
    (box.trust_dir / f"{OLD.public.id}.pub").chmod(0o644)
    box.trust_dir.chmod(0o777)
    assert code(path, box) == "store"


def test_a_link_to_a_key_that_is_gone_is_said_and_makes_no_other_key_unknown(
    tmp_path: Path, box: Box
) -> None:
    path = signed(tmp_path / "f", OLD)
    (box.trust_dir / "gone.pub").symlink_to(tmp_path / "nowhere.pub")
    with pytest.raises(SigningError, match=r"gone\.pub") as refused:
        verify_file(path, box.store())
    assert refused.value.code == "store"


def test_two_keys_with_one_id_are_refused(tmp_path: Path, box: Box) -> None:
    twin = SecretKey(OLD.public.id_bytes, NEW.seed)
    (box.trust_dir / "twin.pub").write_text(twin.public.text())
    with pytest.raises(SigningError, match="different keys with one id"):
        box.store().known_keys()


def test_acceptances_at_once_are_all_kept(tmp_path: Path, box: Box) -> None:
    files = [signed(tmp_path / f"f{number}", OLD, 1, name=f"pack{number}") for number in range(16)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: accept(path, box), files))
    assert len(json.loads(box.record.read_text())["sequences"]) == 16


CRASH = """
import os, signal, sys
from pathlib import Path
from appliance.signing import files
from appliance.signing.trust import TrustStore
from appliance.signing.verification import verify_file
step, path, record, folder = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
fsync, taken = os.fsync, iter(range(99))
def die(event, arguments):
    if event in ("open", "os.rename", "fsync") and (event != "open" or str(record.parent) in str(arguments[0])):
        if next(taken) == step:
            os.kill(os.getpid(), signal.SIGKILL)
def audited(descriptor):
    sys.audit("fsync")
    fsync(descriptor)
os.fsync = audited
store = TrustStore(record, (folder,))
verified = verify_file(path, store)
sys.addaudithook(die)
store.accept(verified)
"""


def test_killed_at_every_step_the_record_is_the_old_or_the_new_one(tmp_path: Path, box: Box) -> None:
    accept(signed(tmp_path / "one", OLD, 1), box)
    before = box.record.read_bytes()
    two = signed(tmp_path / "two", OLD, 2)
    outcomes = set()
    for step in range(20):
        box.record.write_bytes(before)
        done = subprocess.run(
            [sys.executable, "-c", CRASH, str(step), two, box.record, box.trust_dir],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        highest = json.loads(box.record.read_text())["sequences"]["pack:sample"][OLD.public.id]
        assert highest in (1, 2)
        assert code(two, box) is None  # the same file is welcome either way
        outcomes.add((done.returncode, highest))
        if done.returncode == 0:
            break
    assert outcomes == {(-9, 1), (-9, 2), (0, 2)}, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write into another user's folder")
def test_roots_record_belongs_to_the_services_user(tmp_path: Path, box: Box) -> None:
    os.chown(box.data_dir, 12345, 12345)
    TrustStore(box.record, (box.trust_dir,)).accept(verify_file(signed(tmp_path / "f", OLD), box.store()))
    assert {path.stat().st_uid for path in box.data_dir.iterdir()} == {12345}
