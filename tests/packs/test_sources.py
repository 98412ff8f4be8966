"""What root brings in its own folders reaches the service's user, who cannot look into them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.backup.swap import acting_as_owner
from appliance.bundles.packs import export_pack
from appliance.cli.pack_source import reachable
from appliance.config import Settings
from appliance.signing.keys import SecretKey
from appliance.signing.signatures import sign_file
from appliance.storage.spool import Spool
from tests.killing import die_before
from tests.packs.sample import contents, write_pack
from tests.packs.test_signatures import first_start
from tests.signing.samples import Box, trust_list

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root has folders that the service cannot read"
)
OWNER = 12345
ROOT = Path(__file__).parents[2]
OLD, KEY = SecretKey.generate(), SecretKey.generate()


@pytest.fixture
def box() -> Iterator[Box]:
    """A box whose data belong to another user, in a folder that everyone may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        made = Box(Path(folder) / "box", OLD)
        first_start(made)
        made.data_dir.parent.chmod(0o755)
        for path in (made.trust_dir, *made.trust_dir.iterdir()):
            path.chmod(0o755)
        for path in (made.data_dir, *made.data_dir.rglob("*")):
            os.chown(path, OWNER, OWNER)
        yield made


def signed_pack(folder: Path, name: str) -> Path:
    source = write_pack(folder.parent / f"source-{name}", contents(1), name)
    manifest = export_pack(source, folder, 1)
    sign_file(folder / manifest.file_name, KEY, manifest.subject)
    return folder / manifest.file_name


def test_a_file_is_copied_with_its_signature_and_the_copy_goes(tmp_path: Path, box: Box) -> None:
    path = signed_pack(tmp_path, "sample")
    with reachable(Settings(data_dir=box.data_dir), str(path)) as source:
        copies = sorted(Path(source).parent.iterdir())
        assert [copy.name for copy in copies] == [path.name, f"{path.name}.minisig"]
        assert {copy.stat().st_uid for copy in (*copies, Path(source).parent)} == {OWNER}
        assert Path(source).read_bytes() == path.read_bytes()
    assert list((box.data_dir / "spool").iterdir()) == []
    with reachable(Settings(data_dir=box.data_dir), "https://box.lan/a.tar.zst") as source:
        assert source == "https://box.lan/a.tar.zst"


def test_wherever_a_copy_is_cut_off_the_next_start_of_the_service_clears_it_away(
    tmp_path: Path, box: Box
) -> None:
    path = signed_pack(tmp_path, "sample")
    settings = Settings(data_dir=box.data_dir)
    for step in range(100):
        child = os.fork()
        if child == 0:
            die_before(step)
            with reachable(settings, str(path)):
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with acting_as_owner(box.data_dir):
            assert list(Spool(settings.spool_dir).directory.iterdir()) == [], step
        if not os.WIFSIGNALED(status):
            assert step > 5
            return
    raise AssertionError


def test_root_imports_a_stick_without_the_service(tmp_path: Path, box: Box) -> None:
    stick = tmp_path / "stick"
    stick.mkdir(mode=0o700)
    trust_list(stick / "1.trust.json", OLD, bring=(KEY,))
    for name in ("one", "two"):
        signed_pack(stick, name)
    environment = {
        "PATH": os.environ["PATH"],
        "APPLIANCE_DATA_DIR": str(box.data_dir),
        "APPLIANCE_TRUST_DIR": str(box.trust_dir),
    }
    # Loaded before the user changes: this Python may lie where only root can read it.
    program = (
        "import appliance.cli.pack, appliance.control.stores; from appliance.cli import command; command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "pack", "import", str(stick), "--json"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [pack["name"] for pack in json.loads(done.stdout)["packs"]] == ["one", "two"]
    assert {path.stat().st_uid for path in box.data_dir.rglob("*")} == {OWNER}
    shutil.rmtree(stick)
