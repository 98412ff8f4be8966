"""The plug is pulled in the middle of an upgrade: the next start serves one of the two releases, with all data.

A child process upgrades the box and is killed right before one of its operations on the disk (every file that it
opens for writing, renames, links, removes; every program that it starts). Then the box boots.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli.upgrade import box_of
from appliance.config import Settings
from appliance.releases.errors import ReleaseError
from appliance.releases.journal import read_journal
from appliance.releases.layout import Layout
from tests.releases.box import CONFIGURATION, FakeBox, Maker, configuration_of, packs_of
from tests.service import clean_environment

EVENTS = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate"),
    *("subprocess.Popen", "fcntl.flock"),
}
POINTS = 24
# Killed a second time while the first interruption is undone.
SECOND_POINTS = 8


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    """Tell whether an audit event is an operation that changes the disk, or starts a program."""
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EVENTS


def in_child(work: Callable[[], object], kill_at: int | None) -> tuple[bool, int]:
    """Run ``work`` in a child that is killed before its operation number ``kill_at``.

    Returns whether it was killed, and how many operations it came to.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if changes(event, arguments):
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(hook)
        try:
            work()
        except ReleaseError:
            pass
        finally:
            os.write(writing, str(count).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status), int(text or 0)


def boot(box: FakeBox) -> None:
    """What the machine does when the power is back: the keeper's program resumes, the service starts."""
    box.service.stop()
    assert (box.layout.keeper_link / "appliance").exists()
    box.service.start()


def check(box: FakeBox, *, new: int, acknowledged: set[str]) -> int:
    """Check that the box serves one of the two releases with all its data; return which."""
    serving = box.layout.current().sequence
    assert serving in (1, new)
    assert box.service.release is not None
    assert box.service.release.sequence == serving
    assert acknowledged <= box.service.rows()
    box.service.write(f"after the plug {len(box.service.rows())}")
    journal = read_journal(box.layout.journal_path)
    assert journal is None or journal.phase == "done"
    assert not [path for path in box.settings.data_dir.iterdir() if path.name.endswith(".returning")]
    return serving


def copy_of(box: FakeBox, folder: Path, maker: Maker) -> FakeBox:
    """Return a box of its own that is the same."""
    copy = FakeBox.__new__(FakeBox)
    FakeBox.__init__(copy, folder, maker)
    for name in ("data", "opt"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(box.settings.data_dir.parent / name, folder / name, symlinks=True)
    copy.service.start()
    return copy


def spread(total: int, points: int) -> list[int]:
    return sorted({number * total // points for number in range(points)})


@pytest.mark.parametrize(
    "behaviour",
    [
        {"schema": 2},
        {"schema": 3, "crashes": True},
        {"schema": 3, "crashes": True, "meddles": True},
        {"schema": 2, "dies_when_open": True},
    ],
    ids=["goes-well", "comes-back", "comes-back-with-packs-and-configuration", "comes-back-with-writes"],
)
def test_any_instant_of_an_upgrade(
    box: FakeBox, maker: Maker, tmp_path: Path, behaviour: dict[str, object]
) -> None:
    bundle = maker.bundle(2, **behaviour)  # type: ignore[arg-type]
    _, total = in_child(lambda: copy_of(box, tmp_path / "whole", maker).upgrade(bundle), None)
    _, making = in_child(lambda: copy_of(box, tmp_path / "making", maker), None)
    assert total - making > POINTS
    seen = set()
    for point in spread(total - making, POINTS):
        folder = tmp_path / f"box-{point}"
        mine = copy_of(box, folder, maker)
        killed, _ = in_child(lambda mine=mine: mine.upgrade(bundle), point)  # type: ignore[misc]
        assert killed, point
        boot(mine)
        seen.add(check(mine, new=2, acknowledged={"first"}))
        # No writes were taken by a release that does not start: all is as before.
        assert packs_of(mine.settings).keys() == {"stays", "goes", ".former-stays"}
        assert configuration_of(mine.settings).read_text() == CONFIGURATION
        shutil.rmtree(folder)
    assert 1 in seen


def test_any_instant_of_the_return_from_an_interrupted_upgrade(
    box: FakeBox, maker: Maker, tmp_path: Path
) -> None:
    bundle = maker.bundle(2, schema=3, crashes=True, meddles=True)
    _, making = in_child(lambda: copy_of(box, tmp_path / "making", maker), None)
    _, total = in_child(lambda: copy_of(box, tmp_path / "whole", maker).upgrade(bundle), None)
    # Where the store has been migrated: the last third is the return itself.
    point = (total - making) * 3 // 4
    for second in range(SECOND_POINTS):
        folder = tmp_path / f"box-{second}"
        mine = copy_of(box, folder, maker)
        assert in_child(lambda mine=mine: mine.upgrade(bundle), point)[0]  # type: ignore[misc]
        in_child(lambda mine=mine: boot(mine), second * 3)  # type: ignore[misc]
        boot(mine)
        check(mine, new=2, acknowledged={"first"})
        assert packs_of(mine.settings).keys() == {"stays", "goes", ".former-stays"}
        assert configuration_of(mine.settings).read_text() == CONFIGURATION
        mine.service.stop()
        shutil.rmtree(folder)


def test_after_a_pulled_plug_the_same_bundle_goes_in(box: FakeBox, maker: Maker, tmp_path: Path) -> None:
    bundle = maker.bundle(2, schema=2)
    assert in_child(lambda: box.upgrade(bundle), 60)[0]
    boot(box)
    box.upgrade(bundle)
    assert check(box, new=2, acknowledged={"first"}) == 2


def test_any_instant_of_a_first_install(maker: Maker, tmp_path: Path) -> None:
    bundle = maker.bundle(1)
    tree = maker.folder / "tree-1"

    def installed(folder: Path) -> FakeBox:
        fresh = FakeBox(folder, maker)
        fresh.layout.make()
        shutil.copytree(tree, fresh.layout.releases / ".staging-given")
        return fresh

    point = 0
    while True:
        fresh = installed(tmp_path / f"box-{point}")
        staged = fresh.layout.releases / ".staging-given"

        def work(fresh: FakeBox = fresh, staged: Path = staged) -> None:
            from appliance.cli.upgrade import install_first

            install_first(fresh.settings, fresh.box, bundle, staged)

        killed, _ = in_child(work, point)
        if not killed:
            break
        # Run again, as the installer is.
        fresh.layout.sweep()
        if not staged.exists():
            shutil.copytree(tree, staged)
        work()
        fresh.service.start()
        assert fresh.layout.current().sequence == 1
        point += 1
    assert point > 8


def test_the_program_of_the_real_box_is_the_same(maker: Maker, tmp_path: Path) -> None:
    """The commands build their box from the settings; a start on a box without releases says nothing."""
    settings = Settings(data_dir=tmp_path / "data", releases_dir=tmp_path / "opt", trust_dir=maker.trust)
    box = box_of(settings, "false")
    assert box.layout.root == Layout(settings.releases_dir).root


def test_a_configuration_that_only_the_newer_release_reads_keeps_no_box_from_coming_back(
    box: FakeBox, maker: Maker, tmp_path: Path
) -> None:
    bundle = maker.bundle(2, schema=3, crashes=True)
    _, making = in_child(lambda: copy_of(box, tmp_path / "making", maker), None)
    _, total = in_child(lambda: copy_of(box, tmp_path / "whole", maker).upgrade(bundle), None)
    for number, point in enumerate(range(making, total)):
        folder = tmp_path / f"box-{number}"
        in_child(lambda folder=folder: copy_of(box, folder, maker).upgrade(bundle), point)  # type: ignore[misc]
        journal = read_journal(folder / "opt" / "upgrade.json")
        if journal is not None and journal.phase == "trial":
            break
    configuration = folder / "appliance.toml"
    configuration.write_text("setting_of_tomorrow = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "upgrade", "--resume"],
        capture_output=True,
        text=True,
        env=clean_environment(
            APPLIANCE_CONFIG=str(configuration), APPLIANCE_RELEASES_DIR=str(folder / "opt")
        ),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Layout(folder / "opt").current().sequence == 1
    assert configuration.read_text() == CONFIGURATION
    # Once nothing is to be taken back, a setting that is none is said.
    configuration.write_text("setting_of_tomorrow = 1\n")
    refused = subprocess.run(
        done.args,
        capture_output=True,
        text=True,
        env=clean_environment(
            APPLIANCE_CONFIG=str(configuration), APPLIANCE_RELEASES_DIR=str(folder / "opt")
        ),
        timeout=120,
    )
    assert refused.returncode == 1
    assert "unknown setting 'setting_of_tomorrow'" in refused.stderr
