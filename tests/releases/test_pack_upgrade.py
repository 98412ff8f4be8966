"""A pack's newer version, by the commands of a box that serves: taken, refused, left by itself, gone back from."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.bundles.installation import install_pack
from appliance.bundles.packs import export_pack
from appliance.cli.pack_upgrade import show_packs
from appliance.config import Settings
from appliance.packs.store import PackStore
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import sign_file
from appliance.signing.trust import TrustStore
from build.smoke_packs import write_smoke_packs
from tests.pack_variants import other_version
from tests.service import KEY, Service, clean_environment, free_port, running_service

PACK = "smoke-embedding"
TEXT = {"model": PACK, "input": "a ferry"}


class Vendor:
    """Makes versions of one pack and signs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = SecretKey.generate()
        self.trust = folder / "trust.d"
        self.trust.mkdir(mode=0o755)
        write_public_key(self.trust / "vendor.pub", self.key.public)
        write_smoke_packs(folder / "packs")

    def pack(self, number: int, *, graph: bytes | None = None) -> Path:
        """Return an unpacked version; ``graph`` takes the place of its model."""
        target = self.folder / f"pack-{number}" / PACK
        target.parent.mkdir()
        return other_version(self.folder / "packs" / PACK, target, str(number), graph=graph)

    def bundle(self, number: int, *, key: SecretKey | None = None, graph: bytes | None = None) -> Path:
        """Return a signed bundle of version and sequence ``number``."""
        manifest = export_pack(self.pack(number, graph=graph), self.folder, number)
        path = self.folder / manifest.file_name
        sign_file(path, key or self.key, manifest.subject)
        return path


@dataclass(frozen=True)
class Box:
    """A service with one small pack, and its commands."""

    service: Service
    trust: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance", "--data-dir", str(self.service.data_dir), *arguments],
            capture_output=True,
            text=True,
            env=clean_environment(
                APPLIANCE_TRUST_DIR=str(self.trust),
                APPLIANCE_RELEASES_DIR=str(self.service.data_dir.with_name("opt")),
            ),
            timeout=120,
        )

    def well(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def refused(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    def version(self) -> str:
        """Return the version that is installed, once it has been seen to serve."""
        with self.service.http as http:
            answer = http.post("/v1/embeddings", json=TEXT)
        assert answer.status_code == 200, answer.text
        shown = json.loads(self.well("pack", "show", PACK, "--json"))
        return str(shown["version"])

    def hidden(self) -> list[str]:
        """Return what the store of packs and the data directory keep beside."""
        packs = [path.name for path in (self.service.data_dir / "packs").glob(".[fops]*")]
        return sorted(packs + [path.name for path in self.service.data_dir.glob(".upgrade-*")])


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture
def box(tmp_path: Path, vendor: Vendor) -> Iterator[Box]:
    """Give a box that serves version 1."""
    data = tmp_path / "data"
    PackStore(data / "packs").install(vendor.folder / "packs" / PACK)
    with running_service(data, APPLIANCE_TRUST_DIR=str(vendor.trust)) as service:
        yield Box(service, vendor.trust)


def bundle(vendor: Vendor, number: int, **changes: object) -> Path:
    """Return a bundle of the vendor's, made once."""
    made = vendor.folder / f"{PACK}-{number}-{number}.tar.zst"
    return made if made.exists() else vendor.bundle(number, **changes)  # type: ignore[arg-type]


def test_a_newer_pack_is_taken_and_gone_back_from(
    box: Box, vendor: Vendor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert box.version() == "1"
    said = box.well("upgrade", str(bundle(vendor, 2)))
    assert "0 failed" in said
    assert f"appliance rollback {PACK}" in said
    assert box.version() == "2"
    assert box.hidden() == [f".former-{PACK}"]
    show_packs(Settings(data_dir=box.service.data_dir))
    assert f"{PACK} 2, before it 1" in capsys.readouterr().out
    releases = box.service.data_dir.with_name("opt")
    assert not releases.exists()  # a box without releases has packs all the same
    assert "already" in box.well("upgrade", str(bundle(vendor, 2)))

    assert f"{PACK} 1 is in use again" in box.well("rollback", PACK)
    assert box.version() == "1"
    # The version that was left is at hand, and its bundle is no older one than was accepted.
    assert f"{PACK} 2 is in use again" in box.well("rollback", PACK)
    assert box.version() == "2"
    box.well("rollback", PACK)
    box.well("upgrade", str(bundle(vendor, 2)))
    assert box.version() == "2"
    assert box.hidden() == [f".former-{PACK}"]
    lines = box.well("audit", "list")
    assert "pack.rollback" in lines
    box.well("pack", "verify")


def test_an_older_pack_is_refused_in_words(box: Box, vendor: Vendor) -> None:
    box.well("upgrade", str(bundle(vendor, 3)))
    said = box.refused("upgrade", str(bundle(vendor, 2)))
    assert "older than number 3" in said
    assert f"appliance rollback {PACK}" in said
    assert box.version() == "3"


def test_a_pack_that_does_not_work_is_refused_before_anything_is_changed(box: Box, vendor: Vendor) -> None:
    broken = vendor.bundle(5, graph=b"no graph at all")
    said = box.refused("upgrade", str(broken))
    assert "failed its smoke test, so nothing was changed" in said
    assert box.version() == "1"
    assert box.hidden() == []
    # Nor does it make another one old.
    box.well("upgrade", str(bundle(vendor, 4)))
    assert box.version() == "4"


def test_a_pack_that_is_installed_unseen_and_does_not_load_is_left_again(box: Box, vendor: Vendor) -> None:
    box.well("upgrade", str(bundle(vendor, 2)))
    broken = vendor.bundle(6, graph=b"no graph either")
    said = box.refused("pack", "install", str(broken))
    assert "cannot be loaded" in said
    assert "the one before serves again" in said
    assert box.version() == "2"
    # The way back is still the one of before.
    box.well("rollback", PACK)
    assert box.version() == "1"


def test_a_number_counts_no_more_once_its_pack_gave_way(box: Box, vendor: Vendor) -> None:
    box.well("upgrade", str(bundle(vendor, 2)))
    broken = vendor.bundle(9, graph=b"nor is this a graph")
    assert "cannot be loaded" in box.refused("pack", "install", str(broken))
    # What is newer than all that ever served is no older one because of it; what is older than that stays refused.
    box.well("upgrade", str(bundle(vendor, 8)))
    assert box.version() == "8"
    assert "older than number 8" in box.refused("upgrade", str(bundle(vendor, 4)))
    assert box.hidden() == [f".former-{PACK}"]


@pytest.mark.parametrize(
    ("number", "stays"), [(signal.SIGKILL, "1"), (signal.SIGTERM, "2")], ids=["killed", "ended-in-good-order"]
)
def test_a_pack_that_ends_the_service_while_it_is_loaded_is_left_again(
    tmp_path: Path, vendor: Vendor, number: signal.Signals, stays: str
) -> None:
    data = tmp_path / "data"
    packs, trust = PackStore(data / "packs"), TrustStore(data / "trust.json", (vendor.trust,))
    packs.install(vendor.folder / "packs" / PACK)
    install_pack(packs, trust, bundle(vendor, 2))
    for _ in range(2):
        begin_to_start_and(number, data, vendor)
    with running_service(data, APPLIANCE_TRUST_DIR=str(vendor.trust)) as service:
        mine = Box(service, vendor.trust)
        assert mine.version() == stays
        # The one that was left is no reason to refuse another.
        mine.well("pack", "install", str(bundle(vendor, 3)))
        assert mine.version() == "3"
        assert mine.hidden() == [f".former-{PACK}"]
        assert not list((data / "packs").glob(".[an]*"))


def begin_to_start_and(number: signal.Signals, data: Path, vendor: Vendor) -> None:
    """Send a signal to a service that has begun to load what is on trial."""
    attempts = data / "packs" / f".attempts-{PACK}"
    before = attempts.read_bytes() if attempts.exists() else b""
    key_file = data / "bootstrap-key"
    key_file.write_text(KEY)
    settings = clean_environment(
        APPLIANCE_DATA_DIR=str(data),
        APPLIANCE_PORT=str(free_port()),
        APPLIANCE_TRUST_DIR=str(vendor.trust),
        APPLIANCE_BOOTSTRAP_KEY_FILE=str(key_file),
    )
    with subprocess.Popen([sys.executable, "-m", "appliance", "serve"], env=settings) as process:
        while (attempts.read_bytes() if attempts.exists() else b"") == before:
            assert process.poll() is None
        process.send_signal(number)
    assert PackStore(data / "packs").previous() == (PACK,)


def test_a_stranger_s_or_damaged_pack_is_refused(box: Box, vendor: Vendor, tmp_path: Path) -> None:
    stranger = vendor.bundle(7, key=SecretKey.generate())
    assert "does not trust" in box.refused("upgrade", str(stranger))
    good = bundle(vendor, 2)
    damaged = tmp_path / good.name
    for path in (good, good.with_name(f"{good.name}.minisig")):
        shutil.copyfile(path, tmp_path / path.name)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert "damaged" in box.refused("upgrade", str(damaged))
    assert box.version() == "1"


def test_a_dry_run_tries_a_pack_and_changes_nothing(box: Box, vendor: Vendor) -> None:
    said = box.well("upgrade", "--dry-run", str(bundle(vendor, 2)))
    assert f"{PACK} 2 would be taken into use" in said
    assert box.version() == "1"
    assert box.hidden() == []


def test_there_is_no_way_back_from_the_first_version(box: Box) -> None:
    assert "no former version" in box.refused("rollback", PACK)
    assert "no pack named 'nothing-such'" in box.refused("rollback", "nothing-such")
