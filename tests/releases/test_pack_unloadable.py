"""A pack that passes its smoke test, which runs by itself, and does not load in the service with its settings."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
import tomli_w

from appliance.bundles.packs import export_pack
from appliance.packs.store import PackStore
from appliance.signing.signatures import sign_file
from tests.releases.test_pack_upgrade import Box, Vendor
from tests.service import running_service

PACK = "smoke-chat"
GRAPH = "throughput.onnx"


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    (tmp_path / "vendor").mkdir()
    return Vendor(tmp_path / "vendor")


def bundle(vendor: Vendor, number: int, profile_graph: bytes | None) -> Path:
    """Return a bundle of version ``number``, with a second profile that runs by the bytes of ``profile_graph``."""
    folder = vendor.folder / f"chat-{number}" / PACK
    folder.mkdir(parents=True)
    for path in (vendor.folder / "packs" / PACK).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = tomllib.loads((folder / "pack.toml").read_text())
    manifest["version"] = str(number)
    if profile_graph is not None:
        (folder / GRAPH).write_bytes(profile_graph)
        manifest["decoder"]["profiles"] = [{"name": "throughput", "graph": GRAPH}]
        entry = {
            "path": GRAPH,
            "size": len(profile_graph),
            "sha256": hashlib.sha256(profile_graph).hexdigest(),
        }
        manifest["file"] = sorted([*manifest["file"], entry], key=lambda file: file["path"])
    (folder / "pack.toml").write_text(tomli_w.dumps(manifest))
    made = export_pack(folder, vendor.folder, number)
    path = vendor.folder / made.file_name
    sign_file(path, vendor.key, made.subject)
    return path


def answers(box: Box) -> str:
    """Return the version that is installed, once it has been seen to serve."""
    with box.service.http as http:
        answer = http.post("/v1/completions", json={"model": PACK, "prompt": "Hello", "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    return str(json.loads(box.well("pack", "show", PACK, "--json"))["version"])


def test_a_pack_that_only_fails_in_the_service_is_left_by_itself(tmp_path: Path, vendor: Vendor) -> None:
    data = tmp_path / "data"
    PackStore(data / "packs").install(vendor.folder / "packs" / PACK)
    with running_service(
        data, APPLIANCE_TRUST_DIR=str(vendor.trust), APPLIANCE_GENERATION_PROFILE="throughput"
    ) as service:
        box = Box(service, vendor.trust)
        good = (vendor.folder / "packs" / PACK / "model.onnx").read_bytes()
        done = box.run("upgrade", str(bundle(vendor, 4, b"no graph")))
        assert "0 failed" in done.stdout
        assert done.returncode == 1
        assert "cannot be loaded" in done.stderr
        assert "the one before serves again" in done.stderr
        assert "Traceback" not in done.stderr
        assert answers(box) == "1"
        assert box.hidden() == []
        # The repaired one has whatever number: only what ever served makes another old.
        box.well("upgrade", str(bundle(vendor, 3, good)))
        assert answers(box) == "3"
        assert box.hidden() == [f".former-{PACK}"]
        assert "older than number 3" in box.refused("upgrade", str(bundle(vendor, 2, good)))
