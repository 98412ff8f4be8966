"""``install.sh`` below a folder: a first install, again, an upgrade, what is refused, and removal.

The tree is a script that runs this source; the archive is made as ``make archive`` makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.packs.store import PackStore
from appliance.releases.layout import Layout
from appliance.signing.keys import SecretKey, write_public_key
from build.archive import Inputs, make_archive
from tests.packs.sample import write_pack

ROOT = Path(__file__).resolve().parents[2]
# A release's program: the commands of this source, and a doctor and a smoke test that say what they are told to.
PROGRAM = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
case $1 in
    doctor) echo "Port 443: another program listens"; exit "$(cat "$here/doctor")" ;;
    smoke) echo "1 passed"; exit 0 ;;
esac
exec {python} -P -m appliance "$@"
"""


class Archive:
    """What the maker carries to the box, unpacked there."""

    def __init__(
        self, folder: Path, key: SecretKey, sequence: int, *, doctor: int = 0, pack: bool = False
    ) -> None:
        tree = folder / f"tree-{sequence}"
        (tree / "_internal").mkdir(parents=True)
        (tree / "_internal" / "library.so").write_bytes(os.urandom(4096))
        (tree / "appliance").write_text(PROGRAM.format(python=sys.executable))
        (tree / "appliance").chmod(0o755)
        (tree / "doctor").write_text(str(doctor))
        trust = folder / "trust"
        if not trust.exists():
            trust.mkdir()
            write_public_key(trust / "maker.pub", key.public)
        packs = None
        if pack:
            packs = folder / "packs"
            write_pack(packs / "tiny", {"a.bin": bytes(5000)}, "tiny")
        made = make_archive(
            Inputs(
                tree=tree,
                key=key,
                sequence=sequence,
                out=folder / "out",
                trust=trust,
                packs=packs,
                version=f"0.{sequence}",
            )
        )
        self.bundle = made.bundle
        self.folder = folder / f"carried-{sequence}"
        self.folder.mkdir()
        subprocess.run(["tar", "-xf", str(made.outer), "-C", str(self.folder)], check=True)

    def run(self, root: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "install.sh"), "--root", str(root), *options]
        kept = {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(command, capture_output=True, text=True, env=kept, check=False)


@pytest.fixture
def key() -> SecretKey:
    """Return the maker's key."""
    return SecretKey.generate()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a box."""
    return tmp_path / "root"


def files_of(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".lock", ".db-shm", ".db-wal"):
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_a_first_install_and_the_same_again(tmp_path: Path, key: SecretKey, root: Path) -> None:
    archive = Archive(tmp_path, key, 7, pack=True)
    done = archive.run(root)
    assert done.returncode == 0, done.stderr
    assert "set-up code" in done.stdout
    current = Layout(root / "opt/appliance").current()
    assert current.sequence == 7
    assert (root / "opt/appliance/keeper/appliance").exists()
    assert [pack.problem for pack in PackStore(root / "var/lib/appliance/packs").list()] == [None]
    assert (root / "etc/systemd/system/appliance.service").is_file()
    units = [path for path in (root / "etc/systemd/system").glob("appliance*") if path.is_file()]
    for unit in units:
        for page in re.findall(r"^Documentation=file:/(.*)$", unit.read_text(), re.MULTILINE):
            assert (root / page).is_file(), f"{unit.name} names {page}"
    assert (root / "opt/appliance/current/docs/configuration.md").is_file()
    assert "keeper" in (root / "etc/systemd/system/appliance.service.d/keeper.conf").read_text()
    assert (root / "usr/local/bin/appliance").readlink() == Path("/opt/appliance/current/appliance")
    assert (root / "etc/appliance/trust.d/maker.pub").is_file()
    assert not list((root / "opt/appliance/releases").glob(".*"))
    configuration = root / "etc/appliance/appliance.toml"
    configuration.write_text(configuration.read_text() + "# mine\n")
    before = files_of(root / "opt")
    again = archive.run(root)
    assert again.returncode == 0, again.stderr
    assert "installed already" in again.stdout
    assert files_of(root / "opt") == before
    assert configuration.read_text().endswith("# mine\n")


def test_a_dry_run_leaves_nothing(tmp_path: Path, key: SecretKey, root: Path) -> None:
    done = Archive(tmp_path, key, 7, pack=True).run(root, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would install" in done.stdout
    assert files_of(root) == {}
    assert not (root / "opt/appliance").exists()


def test_an_unfit_machine_is_told_what_to_do(tmp_path: Path, key: SecretKey, root: Path) -> None:
    done = Archive(tmp_path, key, 7, doctor=1).run(root)
    assert done.returncode == 1
    assert "another program listens" in done.stderr
    assert "not fit" in done.stderr
    assert files_of(root) == {}


def test_a_damaged_archive_is_refused_before_anything_runs(
    tmp_path: Path, key: SecretKey, root: Path
) -> None:
    archive = Archive(tmp_path, key, 7)
    with (archive.folder / "tree.tar.gz").open("r+b") as file:
        file.seek(500)
        file.write(b"\0\0\0\0")
    done = archive.run(root)
    assert done.returncode == 1
    assert "the archive is damaged" in done.stderr
    assert not root.exists()


def test_a_tree_that_is_not_the_signed_one_is_refused(tmp_path: Path, key: SecretKey, root: Path) -> None:
    archive, other = Archive(tmp_path, key, 7), Archive(tmp_path, key, 8)
    shutil.copy(other.folder / "tree.tar.gz", archive.folder / "tree.tar.gz")
    renew_sums(archive.folder)
    done = archive.run(root)
    assert done.returncode == 1
    assert "not the file that the signed bundle lists" in done.stderr
    assert not (root / "opt/appliance/current").exists()


def renew_sums(folder: Path) -> None:
    """Write the checksums as somebody would who changed the archive."""
    names = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_another_key_under_a_trusted_name_is_refused(tmp_path: Path, key: SecretKey, root: Path) -> None:
    assert Archive(tmp_path, key, 7).run(root).returncode == 0
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    done = Archive(stranger, SecretKey.generate(), 8).run(root)
    assert done.returncode == 1
    assert "another key than the archive's" in done.stderr
    assert Layout(root / "opt/appliance").current().sequence == 7


def test_removal_keeps_the_data_unless_told(tmp_path: Path, key: SecretKey, root: Path) -> None:
    archive = Archive(tmp_path, key, 7, pack=True)
    assert archive.run(root).returncode == 0
    done = archive.run(root, "--uninstall")
    assert done.returncode == 0, done.stderr
    assert not (root / "opt/appliance").exists()
    assert not (root / "usr/local/bin/appliance").is_symlink()
    assert not list((root / "etc/systemd/system").iterdir())
    assert (root / "var/lib/appliance/packs/tiny").is_dir()
    assert (root / "etc/appliance/appliance.toml").is_file()
    # And in again, over the data that were kept.
    assert archive.run(root).returncode == 0
    # What restores put aside are the same people's data; what merely begins alike is somebody else's.
    for name in ("appliance.before-restore-20261126T083551", ".appliance.restoring-1", "appliance-of-ours"):
        (root / "var/lib" / name).mkdir()
    assert archive.run(root, "--uninstall", "--purge-data").returncode == 0
    assert [path.name for path in (root / "var/lib").iterdir()] == ["appliance-of-ours"]
    assert not (root / "etc/appliance").exists()


def test_an_older_archive_does_not_come_back_over_removal(tmp_path: Path, key: SecretKey, root: Path) -> None:
    older = Archive(tmp_path, key, 7)
    newer = Archive(tmp_path, key, 8)
    assert newer.run(root).returncode == 0
    assert newer.run(root, "--uninstall").returncode == 0
    done = older.run(root)
    assert done.returncode == 1
    assert "older than number 8" in done.stderr


def test_keys_are_for_everybody_to_read_however_the_archive_was_unpacked(
    tmp_path: Path, key: SecretKey, root: Path
) -> None:
    archive = Archive(tmp_path, key, 7)
    for path in archive.folder.rglob("*"):
        if path.is_file():  # as tar does under the umask 077 of who is not root
            path.chmod(path.stat().st_mode & 0o700)
    done = archive.run(root)
    assert done.returncode == 0, done.stderr
    assert (root / "etc/appliance/trust.d/maker.pub").stat().st_mode & 0o777 == 0o644
    assert (root / "etc/appliance/appliance.toml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_folder_that_takes_no_files_is_said_before_anything_is_installed(
    tmp_path: Path, key: SecretKey, root: Path, options: list[str]
) -> None:
    (root / "usr").mkdir(parents=True)
    (root / "usr/local").write_text("no folder")
    done = Archive(tmp_path, key, 7).run(root, *options)
    assert done.returncode == 1
    assert "usr/local/bin cannot be written" in done.stderr
    assert [path.name for path in root.iterdir()] == ["usr"]


@pytest.mark.parametrize("is_link", [False, True])
def test_somebody_elses_program_of_that_name_is_left_alone(
    tmp_path: Path, key: SecretKey, root: Path, is_link: bool
) -> None:
    program = root / "usr/local/bin/appliance"
    program.parent.mkdir(parents=True)
    if is_link:
        program.symlink_to("/home/me/bin/appliance")
    else:
        program.write_text("mine")
    archive = Archive(tmp_path, key, 7)
    done = archive.run(root)
    assert done.returncode == 1
    assert "usr/local/bin/appliance is another program" in done.stderr
    assert archive.run(root, "--uninstall").returncode == 0
    assert os.path.lexists(program)
    assert program.is_symlink() is is_link


def test_somebodys_own_account_of_that_name_is_not_taken_over(
    tmp_path: Path, key: SecretKey, root: Path
) -> None:
    archive, users = Archive(tmp_path, key, 7), root / "etc/passwd"
    users.parent.mkdir(parents=True)
    users.write_text("appliance:x:1000:1000:Anna:/home/appliance:/bin/bash\n")
    done = archive.run(root)
    assert done.returncode == 1
    assert "somebody's own account" in done.stderr
    assert not (root / "opt").exists()
    users.write_text("appliance:x:998:998:AI appliance:/var/lib/appliance:/usr/sbin/nologin\n")
    assert archive.run(root).returncode == 0
    # A box that was installed before this was asked goes on as it is, whoever owns its data.
    users.write_text("appliance:x:1000:1000::/home/appliance:/usr/sbin/nologin\n")
    done = archive.run(root)
    assert done.returncode == 0, done.stderr


def test_two_installers_do_not_meet(tmp_path: Path, key: SecretKey, root: Path) -> None:
    releases = root / "opt/appliance/releases"
    staged = releases / ".staging-install.1"
    staged.mkdir(parents=True)
    archive = Archive(tmp_path, key, 7)
    descriptor = os.open(releases, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        done = archive.run(root)
    finally:
        os.close(descriptor)
    assert done.returncode == 1
    assert "another install.sh" in done.stderr
    assert staged.is_dir()
    assert archive.run(root).returncode == 0
    assert not staged.exists()


def test_removal_leaves_units_of_others(tmp_path: Path, key: SecretKey, root: Path) -> None:
    archive, mine = Archive(tmp_path, key, 7), root / "etc/systemd/system/appliance-watch.service"
    assert archive.run(root).returncode == 0
    mine.write_text("[Unit]")
    assert archive.run(root, "--uninstall").returncode == 0
    assert list(mine.parent.iterdir()) == [mine]


def test_it_runs_from_and_into_folders_with_spaces_in_an_odd_environment(
    tmp_path: Path, key: SecretKey, root: Path
) -> None:
    archive, root = Archive(tmp_path, key, 7, pack=True), tmp_path / "a root"
    carried = tmp_path / "a stick" / "carried"
    shutil.copytree(archive.folder, carried)
    (tmp_path / "elsewhere" / "carried").mkdir(parents=True)
    done = subprocess.run(
        ["sh", "carried/install.sh", "--root", str(root)],
        capture_output=True,
        text=True,
        cwd=carried.parent,
        env={
            "PATH": "/usr/bin:/bin",
            "CDPATH": str(tmp_path / "elsewhere"),
            "TAR_OPTIONS": "--exclude=*",
            "LC_ALL": "xx_XX",
        },
        umask=0o077,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Layout(root / "opt/appliance").current().sequence == 7
    assert (root / "opt/appliance/current/docs").stat().st_mode & 0o777 == 0o755
    assert (root / "var/lib/appliance").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("options", [["--purge-data"], ["--never-heard-of"], ["--root"], ["--root", ""]])
def test_wrong_calls_change_nothing(tmp_path: Path, key: SecretKey, root: Path, options: list[str]) -> None:
    done = Archive(tmp_path, key, 7).run(root, *options)
    assert done.returncode == 1
    assert not root.exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    subprocess.run(["shellcheck", str(ROOT / "build/install.sh")], check=True)


def test_the_script_is_posix() -> None:
    shell = shutil.which("dash") or "sh"
    subprocess.run([shell, "-n", str(ROOT / "build/install.sh")], check=True)
