"""The archive of a first install: what bare Debian's tools unpack is what the signed bundle lists."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest

from appliance.bundles.reader import check_bundle
from appliance.bundles.tree import check_tree
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import signature_path
from appliance.signing.verification import verify_file
from build.archive import ArchiveError, Inputs, Made, make_archive
from tests.bundles.samples import snapshot, write_tree
from tests.packs.sample import contents, write_pack
from tests.signing.samples import Box

KEY = SecretKey.generate()


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    for folder in ("trust", "sources", "units/sub", "docs/grafana"):
        (tmp_path / folder).mkdir(parents=True)
    write_public_key(tmp_path / "trust" / "a.pub", KEY.public)
    (tmp_path / "sources" / "install.sh").write_text("#!/bin/sh\n")
    (tmp_path / "sources" / "README.txt").write_text("Read me.\n")
    (tmp_path / "units" / "appliance.service").write_text("[Unit]\n")
    (tmp_path / "units" / "README.md").write_text("not shipped\n")
    (tmp_path / "docs" / "operate.md").write_text("# Operate\n")
    (tmp_path / "docs" / "grafana" / "appliance.json").write_text("{}\n")
    tree = write_tree(tmp_path / "frozen")
    (tree / "trust" / "some.pub").unlink()
    write_pack(tmp_path / "packs" / "sample", contents(1))
    (tmp_path / "packs" / ".lock").touch()
    return Inputs(
        tree=tree,
        key=KEY,
        sequence=7,
        out=tmp_path / "out",
        trust=tmp_path / "trust",
        packs=tmp_path / "packs",
        version="1.2.3",
        sources=tmp_path / "sources",
        units=tmp_path / "units",
        docs=tmp_path / "docs",
    )


def test_the_archive_holds_what_a_box_needs(tmp_path: Path, inputs: Inputs) -> None:
    before = snapshot(inputs.tree)
    made = make_archive(inputs)
    assert snapshot(inputs.tree) == before
    assert made.outer.name == "appliance-1.2.3-7-install.tar"
    assert sorted(path.name for path in inputs.out.iterdir()) == [
        "appliance-1.2.3-7-install.tar",
        "appliance-1.2.3-7-install.tar.minisig",
        "appliance-1.2.3-7.tar.zst",
        "appliance-1.2.3-7.tar.zst.minisig",
    ]
    with tarfile.open(made.outer) as tar:
        assert tar.getnames() == [
            "packs",
            "trust",
            "install.sh",
            "README.txt",
            "tree.tar.gz",
            "appliance-1.2.3-7.tar.zst",
            "appliance-1.2.3-7.tar.zst.minisig",
            "packs/sample-1-7.tar.zst",
            "packs/sample-1-7.tar.zst.minisig",
            "trust/a.pub",
            "SHA256SUMS",
        ]
    unpacked, tree = tmp_path / "unpacked", tmp_path / "tree"
    unpacked.mkdir()
    tree.mkdir()
    tools = {"capture_output": True, "check": True, "timeout": 60}
    subprocess.run(["tar", "-xf", str(made.outer), "-C", str(unpacked)], **tools)  # type: ignore[call-overload]
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=unpacked, **tools)  # type: ignore[call-overload]
    subprocess.run(["tar", "-xzf", str(unpacked / "tree.tar.gz"), "-C", str(tree)], **tools)  # type: ignore[call-overload]
    trust = Box(tmp_path / "box", KEY).store()
    bundle = unpacked / made.bundle.name
    manifest = check_bundle(bundle, verify_file(bundle, trust, name="appliance", kind="system"))
    check_tree(manifest, tree)
    assert (tree / "systemd" / "appliance.service").is_file()
    assert not (tree / "systemd" / "README.md").exists()
    assert (tree / "docs" / "operate.md").is_file()
    assert (tree / "docs" / "grafana" / "appliance.json").is_file()
    assert manifest.requires.cpu == ("avx2", "bmi2", "f16c", "fma")
    assert manifest.schema_version >= manifest.schema_readable_from > 0
    assert verify_file(unpacked / "packs/sample-1-7.tar.zst", trust, name="sample", kind="pack").sequence == 7
    assert verify_file(made.outer, trust).name == "appliance-install"


def test_equal_inputs_give_equal_bytes(tmp_path: Path, inputs: Inputs) -> None:
    def everything(made: Made) -> list[bytes]:
        return [path.read_bytes() for path in (made.bundle, made.outer, signature_path(made.outer))]

    one = make_archive(inputs)
    two = make_archive(msgspec.structs.replace(inputs, out=tmp_path / "again"))
    assert everything(one) == everything(two)


def test_what_cannot_work_is_refused_at_once(tmp_path: Path, inputs: Inputs) -> None:
    stranger = msgspec.structs.replace(inputs, key=SecretKey.generate())
    with pytest.raises(ArchiveError, match="is not among the trusted ones"):
        make_archive(stranger)
    with pytest.raises(ArchiveError, match="make bundle"):
        make_archive(msgspec.structs.replace(inputs, tree=tmp_path))
    with pytest.raises(ArchiveError, match="holds no packs"):
        make_archive(msgspec.structs.replace(inputs, packs=tmp_path / "sources"))
    with pytest.raises(ArchiveError, match="holds no packs"):
        make_archive(msgspec.structs.replace(inputs, packs=tmp_path / "no such folder"))
    (inputs.sources / "install.sh").unlink()
    with pytest.raises(ArchiveError, match="is missing"):
        make_archive(inputs)
    assert list(inputs.out.iterdir()) == []
