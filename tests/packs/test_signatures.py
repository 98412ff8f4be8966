"""Packs are installed by their signature: on the command line, over the air gap, and across crashes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from appliance.bundles import installation
from appliance.bundles.errors import BundleError
from appliance.bundles.installation import install_pack
from appliance.bundles.manifest import BundleManifest, encode_manifest
from appliance.bundles.packs import export_pack, pack_reader
from appliance.bundles.tree import list_tree
from appliance.cli import command
from appliance.config import Settings
from appliance.control.stores import open_stores
from appliance.disk import replace
from appliance.errors import ApplianceError
from appliance.packs import store
from appliance.packs.archive import write_archive
from appliance.packs.errors import PackCancelledError
from appliance.packs.store import PackStore, check_pack
from appliance.packs.tar import END
from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey, write_public_key, write_secret_key
from appliance.signing.signatures import Subject, sign_file, signature_path
from tests.bundles.samples import member, system_bundle
from tests.packs.sample import compress, contents, manifest_text, snapshot, write_pack
from tests.signing.samples import FAST, Box, trust_list

KEY, OTHER = SecretKey.generate(), SecretKey.generate()


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    made = Box(tmp_path / "box", KEY)
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(made.data_dir))
    monkeypatch.setenv("APPLIANCE_TRUST_DIR", str(made.trust_dir))
    return made


@pytest.fixture
def packs(box: Box) -> PackStore:
    return PackStore(box.data_dir / "packs")


def bundle(
    folder: Path, sequence: int, key: SecretKey | None = KEY, name: str = "sample", **changes: str
) -> Path:
    """Write the bundle of a pack whose contents go by the sequence; ``changes`` as those of ``write_pack``."""
    source = write_pack(folder / f"source-{name}-{sequence}", contents(sequence), name, **changes)
    manifest = export_pack(source, folder, sequence)
    path = folder / manifest.file_name
    if key is not None:
        sign_file(path, key, manifest.subject)
    return path


def run(*arguments: str | Path, text: str = "") -> Result:
    return CliRunner().invoke(command, ["pack", *map(str, arguments)], input=text)


def run_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr


def label(packs: PackStore) -> bytes:
    return (packs.path / "sample" / "labels.txt").read_bytes()


def test_only_signed_packs_are_installed(tmp_path: Path, box: Box, packs: PackStore) -> None:
    path = bundle(tmp_path, 2)
    assert path.name == "sample-1-2.tar.zst"
    installed = run_json("install", path)
    assert installed == {"name": "sample", "version": "1", "signed_by": KEY.public.id}
    assert packs.verify("sample").name == "sample"
    assert json.loads(box.record.read_text())["sequences"] == {"pack:sample": {KEY.public.id: 2}}
    assert "is not signed: there is no" in refusal("install", bundle(tmp_path, 3, None))
    assert "give --allow-unsigned" in refusal("install", bundle(tmp_path, 3, None))
    assert "which this box does not trust" in refusal("install", bundle(tmp_path, 4, OTHER))
    assert "older than number 2, which this box accepted before" in refusal("install", bundle(tmp_path, 1))
    assert "is a system bundle (appliance), not a model pack" in refusal(
        "install", system_bundle(tmp_path, KEY)
    )
    damaged = bundle(tmp_path, 5)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert "is damaged, or was changed after it was signed" in refusal("install", damaged)
    assert label(packs) == b"2"
    assert run("install", path).exit_code == 0  # the same once more
    assert run("install", "--allow-unsigned", bundle(tmp_path, 3, None)).exit_code == 0
    assert label(packs) == b"3"


def test_allow_unsigned_does_not_let_a_bad_signature_in(tmp_path: Path, box: Box, packs: PackStore) -> None:
    assert "does not trust" in refusal("install", "--allow-unsigned", bundle(tmp_path, 1, OTHER))
    path = bundle(tmp_path, 2)
    signature_path(path).write_bytes(b"x")
    assert "damaged, or not a signature file" in refusal("install", "--allow-unsigned", path)
    assert packs.list() == ()


def test_a_directory_needs_no_signature_in_a_clone_but_on_a_box(
    tmp_path: Path, box: Box, packs: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pack(tmp_path / "source", contents(1))
    assert install_pack(packs, box.store(), source).verified is None
    monkeypatch.setattr(installation, "is_frozen", lambda: True)
    with pytest.raises(SigningError, match="an unpacked directory, which nobody signed"):
        install_pack(packs, box.store(), source)
    install_pack(packs, box.store(), source, allow_unsigned=True)


def test_a_plain_archive_may_be_signed_too(tmp_path: Path, box: Box, packs: PackStore) -> None:
    path = tmp_path / "sample.tar.zst"
    write_archive(write_pack(tmp_path / "source", contents(1)), path)
    sign_file(path, KEY, Subject(name="sample", sequence=1, kind="pack"))
    installed = install_pack(packs, box.store(), path)
    assert (installed.manifest.name, installed.verified is not None) == ("sample", True)
    sign_file(path, KEY, Subject(name="other", sequence=1, kind="pack"))
    with pytest.raises(BundleError, match="signature is of other, but the pack says that it is sample"):
        install_pack(packs, box.store(), path)


def test_a_bundle_is_never_named_like_the_folder_that_was_meant(tmp_path: Path, packs: PackStore) -> None:
    run("install", write_pack(tmp_path / "source", contents(1)))
    stick = tmp_path / "stick"
    said = run("export", "sample", "-o", stick)
    assert (said.exit_code, f"there is no folder {stick}" in said.stderr) == (2, True)
    assert not stick.exists()
    named = tmp_path / "mine.tar.zst"
    assert run_json("export", "sample", "-o", named)["bundle"] == str(named)


def test_a_pack_crosses_the_gap(
    tmp_path: Path, box: Box, packs: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("open\n")
    write_secret_key(tmp_path / "a.key", KEY, "open", FAST)
    run("install", write_pack(tmp_path / "source", contents(1)))
    stick = tmp_path / "stick"
    stick.mkdir()
    words: list[str | Path] = [
        "--sequence",
        "5",
        "--key",
        tmp_path / "a.key",
        "--password-file",
        tmp_path / "password",
    ]
    done = run_json("export", "sample", "-o", stick, *words)
    assert done["signature"] == f"{done['bundle']}.minisig"
    trust_list(stick / "1.trust.json", KEY, bring=(OTHER,))
    bundle(stick, 1, OTHER, name="another")
    system_bundle(tmp_path, KEY, 9).rename(stick / "appliance-1.0.0-9.tar.zst")
    (tmp_path / "appliance-1.0.0-9.tar.zst.minisig").rename(stick / "appliance-1.0.0-9.tar.zst.minisig")
    before = snapshot(packs.path)
    other_side = Box(tmp_path / "other side", KEY)
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(other_side.data_dir))
    assert "start the service once" in refusal("import", stick)
    first_start(other_side)
    taken = run_json("import", stick)
    assert [(pack["name"], pack["signed_by"]) for pack in taken["packs"]] == [
        ("another", OTHER.public.id),
        ("sample", KEY.public.id),
    ]
    assert taken["lists"][0]["trusted"] == [OTHER.public.id]
    assert [Path(path).name for path in taken["systems"]] == ["appliance-1.0.0-9.tar.zst"]
    carried = snapshot(other_side.data_dir / "packs")
    assert {path: data for path, data in carried.items() if path.startswith("sample/")} == before
    assert OTHER.public.id in run("keys").output


def first_start(box: Box) -> None:
    with open_stores(Settings(data_dir=box.data_dir)):
        pass


def test_nothing_is_installed_when_one_of_many_is_bad(tmp_path: Path, box: Box, packs: PackStore) -> None:
    one, two = bundle(tmp_path, 1), bundle(tmp_path, 2, OTHER, name="another")
    assert "does not trust" in refusal("import", one, two)
    assert packs.list() == ()


def test_keys_are_made_sign_and_are_revoked(
    tmp_path: Path, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run_json("keygen", "mine", "--no-password")
    assert run("keygen", "mine", "--no-password").exit_code == 1
    path = bundle(tmp_path, 3, None)
    signed = run_json("sign", path, "--key", "mine.key")
    assert signed[0]["comment"] == "name:sample sequence:3 kind:pack"
    assert made["key_id"] in refusal("install", path)
    shutil.copy("mine.pub", box.trust_dir)
    assert run_json("verify", path) == [{"pack": str(path), "problem": None, "signed_by": made["key_id"]}]
    first_start(box)
    write_secret_key(tmp_path / "b.key", KEY, None)
    words = ["revoke", made["key_id"], "--reason", "lost", "--key", "b.key", "--sequence", "1"]
    assert run(*words).exit_code == 0
    assert "revoked " + made["key_id"] in run("import", "1.trust.json").output
    assert "was revoked (lost)" in refusal("install", path)
    assert f"{made['key_id']}  REVOKED (lost)" in run("keys").output
    assert "cannot revoke itself" in refusal("revoke", KEY.public.id, "--key", "b.key")
    assert run("sign", path).exit_code == 2
    assert "is not valid" in refusal("revoke", "XYZ", "--key", "b.key")


def test_a_password_is_asked_for_twice_and_wrong_ones_are_said(tmp_path: Path, box: Box) -> None:
    (tmp_path / "empty").write_text("\n")
    assert "the password is empty" in refusal("keygen", tmp_path / "c", "--password-file", tmp_path / "empty")
    write_secret_key(tmp_path / "d.key", KEY, "right", FAST)
    path = bundle(tmp_path, 1, None)
    result = run("sign", path, "--key", tmp_path / "d.key", text="wrong\n")
    assert "the password is wrong" in result.output
    assert run("sign", path, "--key", tmp_path / "d.key", text="right\n").exit_code == 0


def test_verify_checks_releases_with_their_tree(tmp_path: Path, box: Box) -> None:
    path = system_bundle(tmp_path, KEY, 4)
    tree = tmp_path / "tree-4"
    assert f"whole, signed by key {KEY.public.id}" in run("verify", path, "--tree", tree).output
    (tree / "more").write_bytes(b"")
    result = run("verify", path, "--tree", tree)
    assert (result.exit_code, "which the signed bundle does not list" in result.output) == (1, True)
    other = Box(tmp_path / "elsewhere", OTHER)
    assert "does not trust" in run("verify", path, "--trust", other.trust_dir).output
    assert "which --tree needs" in run("verify", bundle(tmp_path, 1), "--tree", tree).output


def test_a_trust_list_is_verified_without_being_taken_in(tmp_path: Path, box: Box) -> None:
    lost = SecretKey.generate()
    path = trust_list(tmp_path / "7.trust.json", KEY, 7, revoke=(lost,), bring=(OTHER,))
    said = run("verify", path).output
    assert f"whole, signed by key {KEY.public.id}: revokes {lost.public.id}, brings {OTHER.public.id}" in said
    assert OTHER.public.id not in run("keys").output
    assert run_json("verify", path) == [{"pack": str(path), "problem": None, "signed_by": KEY.public.id}]
    box.store().apply_list(path)
    old = trust_list(tmp_path / "6.trust.json", KEY, 6, bring=(SecretKey.generate(),))
    refused = run("verify", old)
    assert (refused.exit_code, "older than number 7" in refused.output) == (1, True)
    path.write_bytes(path.read_bytes() + b" ")
    assert "changed after it was signed" in run("verify", path).output


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path, box: Box) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "nobody writes to this pipe" in refusal("keygen", tmp_path / "e", "--password-file", pipe)
    assert "names no file" in run("keygen", "", "--no-password").stderr
    empty = tmp_path / "stick"
    empty.mkdir()
    assert "nothing to import" in refusal("import", empty)
    missing = tmp_path / "missing.tar.zst"
    assert run("verify", missing).output.endswith(f"there is no file {missing}\n")


def test_diff_says_what_was_added_changed_and_is_gone(tmp_path: Path, box: Box) -> None:
    run("install", write_pack(tmp_path / "a", {**contents(1), "old.bin": b"12345"}))
    write_pack(tmp_path / "b", {**contents(1), "labels.txt": b"new", "new.bin": b"1"})
    found = run_json("diff", "sample", tmp_path / "b")
    assert [entry["path"] for entry in found["added"]] == ["new.bin"]
    assert found["gone"] == [{"path": "old.bin", "before": 5, "after": None}]
    assert {entry["path"] for entry in found["changed"]} == {"labels.txt", "pack.toml"}
    assert found["same"] == 2
    path = bundle(tmp_path, 1)
    assert run_json("diff", path, tmp_path / "source-sample-1")["changed"] == []
    assert "added    new.bin" in run("diff", "sample", tmp_path / "b").output
    assert "does not trust" in refusal("diff", bundle(tmp_path, 2, OTHER), path)
    systems = [
        system_bundle(tmp_path, KEY, 1),
        system_bundle(tmp_path, KEY, 2, files={"appliance": b"new"}, links={}),
    ]
    assert [entry["path"] for entry in run_json("diff", *systems)["changed"]] == ["appliance"]


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("do not agree on model.onnx", lambda files: {**files, "model.onnx": b"evil"}),
        ("do not agree on more.bin", lambda files: {**files, "more.bin": b""}),
        (
            "do not agree on labels.txt",
            lambda files: {k: v for k, v in files.items() if k != "labels.txt"},
        ),
        ("says sample 2, pack.toml sample 1", lambda files: files),
        ("no pack.toml", lambda files: {k: v for k, v in files.items() if k != "pack.toml"}),
    ],
)
def test_the_two_lists_of_a_pack_must_be_one(tmp_path: Path, words: str, spoil: Any) -> None:
    files = contents(1)
    version = "2" if "sample 2" in words else "1"
    everything = spoil({"pack.toml": manifest_text(files), **files})
    folder = tmp_path / "folder"
    for path, data in everything.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    manifest = BundleManifest(
        kind="pack", name="sample", version=version, sequence=1, created=1, files=list_tree(folder)
    )
    stream = member("MANIFEST.json", encode_manifest(manifest))
    stream += b"".join(member(entry.path, everything[entry.path]) for entry in manifest.files)
    (tmp_path / "b.tar.zst").write_bytes(compress(stream + END))
    with pytest.raises(BundleError, match=words):
        check_pack(tmp_path / "b.tar.zst", reader=pack_reader(None))


def test_a_file_that_changes_between_the_check_and_the_installation(
    tmp_path: Path, box: Box, packs: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = bundle(tmp_path, 1), bundle(tmp_path, 2, None)
    verify = installation.verify_pack

    def swapped(*arguments: Any, **options: Any) -> Any:
        verified = verify(*arguments, **options)
        assert verified is not None
        shutil.copy(other, path)
        return msgspec.structs.replace(verified, sequence=2)

    monkeypatch.setattr(installation, "verify_pack", swapped)
    with pytest.raises(BundleError, match="changed while it was read"):
        install_pack(packs, box.store(), path)
    assert packs.list() == ()
    assert not box.record.exists()


def test_cancelling_during_the_check(tmp_path: Path, box: Box, packs: PackStore) -> None:
    with pytest.raises(PackCancelledError):
        install_pack(packs, box.store(), bundle(tmp_path, 1), cancelled=lambda: True)


def test_every_mutated_byte_of_a_bundle_and_its_signature_is_refused(
    tmp_path: Path, box: Box, packs: PackStore
) -> None:
    path = bundle(tmp_path, 1)
    trust = box.store()
    words = re.match(rb"untrusted comment: (.*)\n", signature_path(path).read_bytes())
    assert words is not None
    for file, step in ((path, 7), (signature_path(path), 1)):
        good = file.read_bytes()
        for position in range(0, len(good), step):
            if file != path and words.start(1) <= position < words.end(1):
                continue  # words that nobody vouches for and nobody reads
            file.write_bytes(good[:position] + bytes([good[position] ^ 0x11]) + good[position + 1 :])
            with pytest.raises(ApplianceError):
                install_pack(packs, trust, path)
        file.write_bytes(good)
    assert packs.list() == ()
    assert not box.record.exists()
    install_pack(packs, trust, path)


def test_killed_between_the_record_and_the_rename(tmp_path: Path, box: Box, packs: PackStore) -> None:
    """The old pack is there, the new one is accepted again, and what is older than it is not."""
    old, new = bundle(tmp_path, 1), bundle(tmp_path, 3)
    install_pack(packs, box.store(), old)

    def die(*_: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace_and_die(*names: Path) -> None:
        replace(*names)
        die()

    for late in (False, True):
        child = os.fork()
        if child == 0:
            # Late: the rename is done, its caller does not know yet.
            vars(store)["replace"] = replace_and_die if late else die
            install_pack(packs, box.store(), new)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert json.loads(box.record.read_text())["sequences"]["pack:sample"][KEY.public.id] == 3
        packs.sweep()
        assert label(packs) == (b"3" if late else b"1")
        assert packs.verify("sample")
        with pytest.raises(SigningError, match="older"):
            install_pack(packs, box.store(), bundle(tmp_path, 2))
    install_pack(packs, box.store(), new)
    assert label(packs) == b"3"


def test_a_public_key_beside_the_bundle_counts_for_nothing(tmp_path: Path, box: Box) -> None:
    path = bundle(tmp_path, 1, OTHER)
    write_public_key(path.with_name("other.pub"), OTHER.public)
    assert "does not trust" in refusal("install", path)
