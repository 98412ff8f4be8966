"""Restoring on a box where a switch of releases is at work, or was cut off: its snapshot must not undo it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.control.stores import exclusive_lock
from appliance.releases import snapshot
from appliance.releases.journal import Phase, driving, read_journal
from appliance.releases.layout import Layout
from tests.backup.sample import add_line, backup, box, lines
from tests.releases.box import write_cut_off
from tests.service import clean_environment

SNAPSHOT = f"{snapshot.SNAPSHOT}1"


class Cut:
    """A box whose upgrade was cut off in ``phase``, with a backup from before it."""

    def __init__(self, home: Path, phase: Phase) -> None:
        self.settings = Settings(data_dir=home / "data", releases_dir=home / "opt")
        self.layout = Layout(self.settings.releases_dir)
        self.layout.make()
        with box(home) as source:
            add_line(source.writers[0], source.secret, "saved")
            self.backup = backup(source)
            add_line(source.writers[0], source.secret, "later")
        with exclusive_lock(self.settings.lock_path):
            snapshot.take(self.settings.data_dir, SNAPSHOT)
        write_cut_off(self.layout, self.settings.data_dir, phase, SNAPSHOT)

    def restore(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "--data-dir", str(self.settings.data_dir)]
        return subprocess.run(
            [*command, "backup", "restore", self.backup.path],
            capture_output=True,
            text=True,
            env={**clean_environment(), "APPLIANCE_RELEASES_DIR": str(self.settings.releases_dir)},
            timeout=300,
        )

    def lines(self) -> list[str]:
        return lines(self.settings.database_path)


@pytest.mark.parametrize("phase", ["switching", "trial", "returning"])
def test_what_would_be_undone_by_the_next_start_is_refused(tmp_path: Path, phase: Phase) -> None:
    cut = Cut(tmp_path, phase)
    refused = cut.restore()
    assert refused.returncode == 1
    assert "appliance upgrade --resume" in refused.stderr
    assert cut.lines() == ["saved", "later"]
    assert not list(tmp_path.glob("*before-restore*"))


@pytest.mark.parametrize("phase", ["begun", "opened", "done"])
def test_a_switch_that_puts_nothing_back_is_no_hindrance(tmp_path: Path, phase: Phase) -> None:
    cut = Cut(tmp_path, phase)
    restored = cut.restore()
    assert restored.returncode == 0, restored.stderr
    assert cut.lines() == ["saved", cut.backup.name]
    # The packs in it, gigabytes, were not copied.
    assert not (cut.settings.data_dir / SNAPSHOT).exists()


def test_a_switch_that_is_at_work_is_waited_for_by_the_operator(tmp_path: Path) -> None:
    cut = Cut(tmp_path, "begun")
    with driving(cut.layout.lock_path):
        refused = cut.restore()
    assert refused.returncode == 1
    assert "being upgraded" in refused.stderr
    assert cut.lines() == ["saved", "later"]


def test_without_the_snapshot_a_restore_is_the_way_out(tmp_path: Path) -> None:
    cut = Cut(tmp_path, "returning")
    snapshot.clear(cut.settings.data_dir)
    restored = cut.restore()
    assert restored.returncode == 0, restored.stderr
    assert cut.lines() == ["saved", cut.backup.name]
    journal = read_journal(cut.layout.journal_path)
    assert journal is not None
    # The next start goes back to the old release, and leaves the store alone.
    assert (journal.phase, journal.keep_store) == ("returning", True)


def test_a_restore_that_is_refused_changes_nothing_of_the_switch_either(tmp_path: Path) -> None:
    cut = Cut(tmp_path, "trial")
    snapshot.clear(cut.settings.data_dir)
    before = cut.layout.journal_path.read_bytes()
    Path(cut.backup.path).write_bytes(b"damaged")
    assert cut.restore().returncode == 1
    assert cut.layout.journal_path.read_bytes() == before


def test_a_journal_that_cannot_be_read_is_no_hindrance(tmp_path: Path) -> None:
    cut = Cut(tmp_path, "trial")
    cut.layout.journal_path.write_text("{")
    assert cut.restore().returncode == 0
