"""Run as a program: dies by SIGKILL before every single step of a backup, or of a restore, and looks at what is left.

``create DIR`` and ``restore DIR`` fork a child for each step and check after it; they print how many there were.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from appliance.backup import swap as swapping
from appliance.backup.archive import check_archive
from appliance.backup.restoring import restore_box
from appliance.backup.shelf import Shelf
from appliance.config import Settings
from appliance.control.stores import exclusive_lock
from appliance.disk import exchange
from tests.backup.sample import add_line, backup, box, lines
from tests.killing import announce_fsync, die_before

MOST_STEPS = 2000


def announce_silent_steps() -> None:
    """Make audit events of the steps that have none."""
    announce_fsync()

    def audited_exchange(one: Path, other: Path) -> None:
        sys.audit("exchange")
        exchange(one, other)
        sys.audit("exchange")

    setattr(swapping, "exchange", audited_exchange)  # noqa: B010 - not its own name


def died(status: int, step: int) -> bool:
    """Tell whether a child was killed; it must have ended well otherwise."""
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, step
    return False


def creating(directory: Path) -> int:
    """Die at every step of a backup; all that is listed must be whole, older ones untouched."""
    with box(directory) as source:
        first = backup(source).name
    shelf = Shelf(directory / "data/backups")
    for step in range(MOST_STEPS):
        child = os.fork()
        if child == 0:
            with box(directory) as source:
                die_before(step)
                backup(source, daily=1)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        listed = shelf.backups()
        assert first in [each.name for each in listed], step
        for each in listed:
            with (shelf.path / each.name).open("rb") as file:
                check_archive(file, [])
        if not died(status, step):
            hidden = [each.name for each in shelf.path.iterdir() if each.name.startswith(".")]
            assert hidden == [".lock"]
            assert list((directory / "data").glob(".*")) == []
            return step
        # Only what was put in place in time is there beside the first.
        for each in listed:
            if each.name != first:
                (shelf.path / each.name).unlink()
    raise AssertionError


def restoring(directory: Path) -> int:
    """Die at every step of a restore; the data must be the old ones or the restored ones, whole."""
    data = directory / "data"
    with box(directory) as source:
        add_line(source.writers[0], source.secret, "saved")
        made = Path(backup(source).path)
        add_line(source.writers[0], source.secret, "later")
    file = directory / made.name
    shutil.copy(made, file)
    settings = Settings(data_dir=data)
    pristine = directory / "pristine"
    shutil.copytree(data, pristine)
    for step in range(MOST_STEPS):
        child = os.fork()
        if child == 0:
            die_before(step)
            with file.open("rb") as opened:
                restore_box(settings, opened, [], exclusive_lock)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        present = lines(data / "appliance.db")
        assert present in (["saved", "later"], ["saved", made.name]), (step, present)
        assert (data / "packs/sample/model.onnx").stat().st_size > 0
        assert (data / "secret.key").stat().st_size == 32
        assert (data / "backups" / made.name).is_file()
        finished = not died(status, step)
        if finished:
            assert present == ["saved", made.name]
        # Whoever looks at it next clears up, and nothing is lost.
        swapping.settle(data)
        beside = {each.name for each in directory.iterdir() if each.name not in ("data", "pristine")}
        assert not [name for name in beside if name.startswith(".")], (step, beside)
        kept = [name for name in beside if name.startswith("data.before-restore-")]
        assert len(kept) == (present == ["saved", made.name]), (step, beside)
        for name in kept:
            assert lines(directory / name / "appliance.db") == ["saved", "later"]
            shutil.rmtree(directory / name)
        with box(directory):  # it opens
            pass
        if finished:
            return step
        shutil.rmtree(data)
        shutil.copytree(pristine, data)
    raise AssertionError


def main(mode: str, directory: str) -> None:
    """Do what the module says."""
    announce_silent_steps()
    print((creating if mode == "create" else restoring)(Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
